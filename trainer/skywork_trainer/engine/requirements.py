"""What an engine's options need of the image and the node, told before the first step and in the option's own name."""

import importlib.util
import os
import shutil

from skywork_trainer.config import Engine, Kernels, Offload


class EngineUnsupported(Exception):
    """An option of spec.engine cannot work here; a retry cannot help."""

    reason = "EngineUnsupported"
    retryable = False

    def __init__(self, message: str) -> None:
        self.message = message
        super().__init__(message)


def check_requirements(engine: Engine, *, on_gpu: bool) -> None:
    """Raise EngineUnsupported, naming the field, when this node lacks what an option needs."""
    if engine.compile:
        _check_compiler("engine.compile", on_gpu=on_gpu)
    if engine.kernels is Kernels.LIGER:
        if not on_gpu:
            raise EngineUnsupported("engine.kernels Liger needs GPUs: its kernels are Triton's. Use Torch on CPUs")
        if importlib.util.find_spec("liger_kernel") is None:
            raise EngineUnsupported("engine.kernels Liger needs the Python package liger-kernel in the trainer's image")
    if engine.offload is not Offload.NONE:
        _check_operations(engine.offload)


def _check_compiler(field: str, *, on_gpu: bool) -> None:
    known = [os.environ.get("CXX", ""), "g++", "clang++"]
    if not any(shutil.which(name) for name in known if name):
        raise EngineUnsupported(
            f"{field} needs a C++ compiler in the trainer's image; neither g++ nor clang++ is there"
        )
    if on_gpu and importlib.util.find_spec("triton") is None:
        raise EngineUnsupported(f"{field} needs the Python package triton in the trainer's image")


def _check_operations(offload: Offload) -> None:
    """Build, or find built, what DeepSpeed offloads with; the first time that takes minutes."""
    from deepspeed.ops.op_builder import AsyncIOBuilder, CPUAdamBuilder

    builders = [CPUAdamBuilder(), *([AsyncIOBuilder()] if offload is Offload.NVME else [])]
    for builder in builders:
        try:
            if not builder.is_compatible(verbose=False):
                raise RuntimeError("the libraries it needs are not there")
            builder.load(verbose=False)
        except Exception as error:  # a compiler's complaint comes as any of half a dozen types
            raise EngineUnsupported(
                f"engine.offload {offload} needs DeepSpeed's {builder.name}, which is not in the trainer's image and "
                f"cannot be built here: {str(error).splitlines()[0] if str(error) else type(error).__name__}"
            ) from error
