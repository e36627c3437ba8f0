"""The arithmetic of a token, and peaks of devices."""

import pytest
from skywork_trainer.config import PRESETS
from skywork_trainer.flops import flops_per_token, matrix_parameters, peak_flops_per_second
from skywork_trainer.model import Decoder


def test_the_paper_s_throughput_comes_out_within_a_point_of_its_utilisation() -> None:
    # Skywork-13B report, appendix B: 1873 tokens/s on an A800, 56.5 %.
    peak = peak_flops_per_second("NVIDIA A800-SXM4-80GB")
    assert peak is not None
    share = 1873 * flops_per_token(PRESETS["skywork-13b"], 4096) / peak
    assert share == pytest.approx(0.565, abs=0.01)


def test_matrices_are_all_parameters_but_the_embedding_and_the_gains() -> None:
    model = PRESETS["tiny"]
    decoder = Decoder(model)
    counted = sum(p.numel() for name, p in decoder.named_parameters() if p.ndim == 2 and name != "embedding.weight")
    assert matrix_parameters(model) == counted


@pytest.mark.parametrize(
    ("name", "tera"),
    [
        ("NVIDIA H200", 989.4),
        ("NVIDIA H100 80GB HBM3", 989.4),
        ("NVIDIA H100 PCIe", 756.0),
        ("NVIDIA H800", 989.4),
        ("NVIDIA B200", 2250.0),
        ("NVIDIA A100-SXM4-40GB", 312.0),
        ("NVIDIA GeForce RTX 4090", None),
        ("cpu", None),
    ],
)
def test_peaks_are_told_only_where_they_are_known(name: str, tera: float | None) -> None:
    assert peak_flops_per_second(name) == (None if tera is None else tera * 1e12)
