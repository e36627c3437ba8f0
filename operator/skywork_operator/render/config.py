"""A run's spec as the trainer reads it: the configuration of a stage, and of a source's preparation."""

from skywork_trainer import config as trainer

from skywork_operator.api.data import Filters, NearDuplicates, Share, Source, Tokens
from skywork_operator.api.faults import HangDetection
from skywork_operator.api.quantities import parse_duration_seconds, parse_quantity
from skywork_operator.api.types import Checkpoints, Engine, Guards, LearningRate, SkyworkRunSpec, Stage
from skywork_operator.world import Run


def run_config(run: Run, stage: str) -> trainer.RunConfig:
    """The configuration of one stage's trainer, which knows the stages up to its own; raises ValueError naming a field.

    Later stages stay out, and sources that no stage has used yet, so that appending either changes nothing that is
    running.
    """
    spec = run.spec
    length = spec.batch.sequence_length
    stages = spec.stages[: [s.name for s in spec.stages].index(stage) + 1]
    used = {entry.source for planned in stages for entry in planned.mixture}
    reference = spec.validation.reference_tokenizer
    return trainer.RunConfig(
        run=run.name,
        namespace=run.namespace,
        incarnation=run.created_seconds,
        stage=stage,
        model=_model(spec),
        tokenizer_uri=spec.tokenizer.uri,
        initial_weights_uri=spec.initial_weights.uri if spec.initial_weights else None,
        start_from=trainer.StartFrom(**spec.start_from.model_dump()) if spec.start_from else None,
        engine=_engine(spec.engine),
        optimizer=trainer.Optimizer(
            beta1=float(spec.optimizer.betas[0]),
            beta2=float(spec.optimizer.betas[1]),
            epsilon=float(spec.optimizer.epsilon),
            weight_decay=float(spec.optimizer.weight_decay),
            gradient_clipping=float(spec.optimizer.gradient_clipping),
        ),
        sequence_length=length,
        global_batch_sequences=parse_quantity(spec.batch.global_tokens) // length,
        attention=trainer.Attention(spec.batch.attention),
        sources=tuple(_source(source) for source in spec.sources if source.name in used),
        stages=tuple(_stage(planned) for planned in stages),
        validation=trainer.Validation(
            every_tokens=parse_quantity(spec.validation.every_tokens),
            windows=spec.validation.windows,
            domains=tuple(trainer.Source(name=d.name, uri=d.uri) for d in spec.validation.domains),
            reference_tokenizer_uri=reference.uri if reference else None,
            time_budget_seconds=_seconds(spec.validation.time_budget),
        ),
        checkpoints=_checkpoints(spec.checkpoints),
        guards=_guards(spec.guards),
        hang=_hang_limits(spec.hang_detection),
        seed=spec.seed,
    )


def preparation(run: Run, name: str) -> trainer.Preparation:
    """How text becomes the source or domain `name`, which has `prepare`; raises ValueError naming a field."""
    prepared = prepared_by_name(run.spec)[name]
    prepare = prepared.prepare
    assert prepare is not None
    duplicates, unwanted = prepare.duplicates, prepare.decontaminate
    uris = {source.name: source.uri for source in run.spec.sources}
    return trainer.Preparation(
        inputs=tuple(prepare.inputs),
        output=prepared.uri,
        tokenizer_uri=run.spec.tokenizer.uri,
        text_field=prepare.text_field,
        filters=_filters(prepare.filters),
        exact_duplicates=duplicates is not None and duplicates.exact,
        known=tuple(uris[known] for known in duplicates.known) if duplicates else (),
        near_duplicates=_near(duplicates.near) if duplicates and duplicates.near else None,
        decontamination=(
            trainer.Decontamination(uris=tuple(unwanted.uris), words=unwanted.words)
            if unwanted
            else trainer.Decontamination()
        ),
        max_bad_share=float(prepare.max_bad_share),
        shard_tokens=parse_quantity(prepare.shard_tokens),
        chunk_bytes=parse_quantity(prepare.chunk_bytes),
    )


def prepared_by_name(spec: SkyworkRunSpec) -> dict[str, Tokens]:
    """Sources, then domains, that this run prepares, in the order of the spec."""
    return {entry.name: entry for entry in (*spec.sources, *spec.validation.domains) if entry.prepare is not None}


def _filters(filters: Filters) -> trainer.Filters:
    shares = {"max_symbol_share": filters.max_symbol_share, "max_repeated_share": filters.max_repeated_share}
    # What is not given stays at the trainer's own default, which asks for nothing.
    return trainer.Filters.model_validate(
        filters.model_dump(exclude={*shares, "min_script_share"}, exclude_none=True)
        | {name: float(share) for name, share in shares.items() if share is not None}
        | {"min_script_share": {entry.script: float(entry.share) for entry in filters.min_script_share}}
    )


def _near(near: NearDuplicates) -> trainer.NearDuplicates:
    return trainer.NearDuplicates(threshold=float(near.threshold), words=near.words, permutations=near.permutations)


def _source(source: Source) -> trainer.Source:
    limit = source.epochs
    return trainer.Source(
        name=source.name,
        uri=source.uri,
        max_epochs=limit.max if limit else None,
        beyond_limit=trainer.BeyondLimit(limit.beyond) if limit else trainer.BeyondLimit.REPEAT,
        on_corrupt=trainer.OnCorrupt(source.on_corrupt_shard),
    )


def _model(spec: SkyworkRunSpec) -> trainer.Model:
    base = trainer.PRESETS[spec.model.preset].model_dump() if spec.model.preset else {}
    given = spec.model.model_dump(exclude={"preset"}, exclude_none=True)
    given |= {name: float(given[name]) for name in ("rope_theta", "norm_eps") if name in given}
    if "heads" in given and "kv_heads" not in given:
        given["kv_heads"] = given["heads"]
    return trainer.Model(**(base | given))


def _engine(engine: Engine) -> trainer.Engine:
    micro_batch = engine.micro_batch_sequences
    return trainer.Engine(
        zero_stage=engine.zero_stage,
        micro_batch_sequences=0 if micro_batch == "Auto" else micro_batch,
        activation_checkpointing=trainer.ActivationCheckpointing(engine.activation_checkpointing),
        compile=engine.compile,
        offload=trainer.Offload(engine.offload),
        kernels=trainer.Kernels(engine.kernels),
    )


def _checkpoints(given: Checkpoints) -> trainer.Checkpoints:
    timed = given.every is not None and given.every != "Auto"
    return trainer.Checkpoints(
        uri=given.uri,
        every_seconds=parse_duration_seconds(given.every) if timed and given.every is not None else None,
        every_steps=given.every_steps,
        every_tokens=_tokens(given.every_tokens),
        auto=given.every == "Auto",
        keep_last=given.keep_last,
        keep_every_tokens=_tokens(given.keep_every_tokens),
        keep_best=given.keep_best,
        local_keep=given.local_keep,
        local_every_seconds=_seconds(given.local_every),
    )


def _tokens(quantity: str | None) -> int | None:
    return parse_quantity(quantity) if quantity is not None else None


def _seconds(duration: str | None) -> float | None:
    return parse_duration_seconds(duration) if duration is not None else None


def _guards(guards: Guards) -> trainer.Guards:
    return trainer.Guards(
        spike_action=trainer.SpikeAction(guards.spike.action),
        spike_sigmas=float(guards.spike.sigmas),
        window_steps=guards.spike.window,
        grace_steps=guards.spike.grace,
        rollback_steps=guards.rollback.back,
        skip_steps=guards.rollback.skip,
        most_rollbacks=guards.rollback.max,
        forgetting=trainer.Forgetting(
            domains=tuple(guards.forgetting.domains), max_rise=float(guards.forgetting.max_rise)
        ),
    )


def _hang_limits(given: HangDetection) -> trainer.HangLimits:
    return trainer.HangLimits(
        init=parse_duration_seconds(given.initialize_timeout),
        restore=parse_duration_seconds(given.restore_timeout),
        first_step=parse_duration_seconds(given.first_step_timeout),
        step=parse_duration_seconds(given.step_timeout),
        validation=parse_duration_seconds(given.validate_timeout),
        save=parse_duration_seconds(given.save_timeout),
    )


def _stage(stage: Stage) -> trainer.Stage:
    return trainer.Stage(
        name=stage.name,
        tokens=parse_quantity(stage.tokens),
        learning_rate=_learning_rate(stage.learning_rate),
        mixture=tuple(trainer.MixtureEntry(source=entry.source, share=_share(entry.share)) for entry in stage.mixture),
    )


def _learning_rate(rate: LearningRate) -> trainer.LearningRate:
    return trainer.LearningRate(
        schedule=trainer.Schedule(rate.schedule),
        peak=float(rate.peak) if rate.peak is not None else None,
        final=float(rate.final) if rate.final is not None else None,
        warmup_tokens=parse_quantity(rate.warmup_tokens) if rate.warmup_tokens else 0,
    )


def _share(share: Share | None) -> trainer.Share | None:
    if share is None:
        return None
    if share.points is not None:
        return trainer.Share(points=tuple(trainer.Point(at=float(p.at), share=float(p.share)) for p in share.points))
    start = float(share.from_ or "0")
    end = float(share.to) if share.to is not None and share.shape != "Constant" else start
    return trainer.Share(start=start, end=end, shape=trainer.Shape(share.shape))
