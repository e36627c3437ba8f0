"""Rows of a run's dashboard about what it learns: held-out domains, optimisation, data."""

from dev.monitoring.dashboards.queries import CHOSEN, LOSS, of_run, of_trainer, rate
from dev.monitoring.panels import Panel, Query, Row

_TOKENS_AT_VALIDATION = (
    f"max(skywork_run_validation_step{{{CHOSEN}}} * skywork_run_tokens{{{CHOSEN}}}"
    f" / (skywork_run_step{{{CHOSEN}}} > 0))"
)

VALIDATION = Row(
    title="Held-out domains",
    panels=(
        Panel(
            title="Validation loss by domain",
            description=f"{LOSS} A kink at a stage's start is the new mixture's; a lasting rise is not.",
            unit="none",
            width=12,
            height=10,
            queries=(Query(expr=of_run("validation_loss", "domain"), legend="{{domain}}"),),
        ),
        Panel(
            title="Validation loss by domain, against tokens",
            description=(
                f"{LOSS} Against the tokens at which each was measured, so that pauses take no room. "
                "`skywork report` draws this from the curves in storage, exactly and for ever."
            ),
            unit="none",
            kind="xychart",
            width=12,
            height=10,
            queries=(
                Query(expr=_TOKENS_AT_VALIDATION, legend="tokens"),
                Query(expr=of_run("validation_loss", "domain"), legend="{{domain}}"),
            ),
        ),
        Panel(
            title="Bits per byte by domain",
            description="Total loss in bits by bytes of text: comparable between tokenizers.",
            unit="none",
            queries=(Query(expr=of_run("validation_bpb", "domain"), legend="{{domain}}"),),
        ),
        Panel(
            title="Perplexity by domain",
            description="exp of the loss per token of the run's tokenizer.",
            unit="none",
            logarithmic=True,
            queries=(Query(expr=of_trainer("validation_perplexity", "domain"), legend="{{domain}}"),),
        ),
        Panel(
            title="Average",
            description=(
                "Each domain weighs the same. Perplexity, on the right, is exp of the mean of the domains' log "
                "perplexities, as the Skywork report averages."
            ),
            unit="none",
            right="perplexity",
            queries=(
                Query(expr=of_run("validation_average_loss"), legend="loss"),
                Query(expr=of_run("validation_average_perplexity"), legend="perplexity"),
            ),
        ),
        Panel(
            title="Reference-normalised loss by domain",
            description=(
                "Nats per token of the reference tokenizer, as the Skywork report compares models. Only with "
                "validation.referenceTokenizer."
            ),
            unit="none",
            queries=(Query(expr=of_run("validation_reference_loss", "domain"), legend="{{domain}}"),),
        ),
        Panel(
            title="Change since the stage's start",
            description="Loss minus that before the stage's first step. Above 0 a domain is being forgotten.",
            unit="none",
            queries=(
                Query(
                    expr=(
                        f"{of_run('validation_loss', 'domain')}"
                        f" - on (domain) {of_run('stage_start_validation_loss', 'domain')}"
                    ),
                    legend="{{domain}}",
                ),
            ),
        ),
        Panel(
            title="Validation minus training loss",
            description=(
                "Mean over the domains minus the training loss, of which this is the mean of ten minutes. A gap that "
                "grows tells of repeated data."
            ),
            unit="none",
            queries=(
                Query(
                    expr=(
                        f"{of_run('validation_average_loss')}"
                        f" - max(avg_over_time(skywork_run_train_loss{{{CHOSEN}}}[10m]))"
                    ),
                    legend="gap",
                ),
            ),
        ),
        Panel(
            title="Time of a validation",
            description="What the newest one took; training stands still for it.",
            unit="s",
            least=0,
            queries=(Query(expr=of_trainer("validation_duration_seconds", "stage"), legend="{{stage}}"),),
        ),
        Panel(
            title="Size of the windows",
            description="Tokens of each domain that are predicted: the fewer, the noisier its loss.",
            unit="short",
            least=0,
            queries=(Query(expr=of_trainer("validation_tokens", "domain"), legend="{{domain}}"),),
        ),
        Panel(
            title="Validations",
            description="Validations that were measured.",
            unit="none",
            least=0,
            queries=(Query(expr=of_trainer("validations_total", "stage"), legend="{{stage}}"),),
        ),
    ),
)

OPTIMISATION = Row(
    title="Optimisation",
    panels=(
        Panel(
            title="Training loss",
            description=f"Newest step's. {LOSS} Falls below the held-out losses where data is repeated.",
            unit="none",
            queries=(Query(expr=of_trainer("train_loss", "stage"), legend="{{stage}}"),),
        ),
        Panel(
            title="Learning rate",
            description="Of the newest step.",
            unit="sci",
            least=0,
            queries=(Query(expr=of_trainer("train_learning_rate", "stage"), legend="{{stage}}"),),
        ),
        Panel(
            title="Gradient norm",
            description="Before clipping. It often grows before a loss spikes.",
            unit="none",
            least=0,
            queries=(Query(expr=of_trainer("train_grad_norm", "stage"), legend="{{stage}}"),),
        ),
        Panel(
            title="Spikes",
            description="Steps whose loss lay far above those before, by what was done.",
            unit="none",
            least=0,
            queries=(Query(expr=of_trainer("train_spikes_total", "stage", "action"), legend="{{stage}} {{action}}"),),
        ),
        Panel(
            title="Steps refused",
            description="Steps whose gradients were not finite; they changed nothing.",
            unit="none",
            least=0,
            queries=(Query(expr=of_trainer("train_nonfinite_steps_total", "stage"), legend="{{stage}}"),),
        ),
        Panel(
            title="Micro-batch",
            description="Sequences of one forward pass; it shrinks when memory runs out.",
            unit="none",
            least=0,
            queries=(Query(expr=of_trainer("train_micro_batch_sequences", "stage"), legend="{{stage}}"),),
        ),
    ),
)

DATA = Row(
    title="Data",
    panels=(
        Panel(
            title="Mixture",
            description="Share of each source in the stage's sequences so far.",
            unit="percentunit",
            least=0,
            most=1,
            stacked=True,
            queries=(Query(expr=of_run("source_share", "source"), legend="{{source}}"),),
        ),
        Panel(
            title="Tokens drawn by source",
            description="Per second, of late: the slope of the mixture, where the panel beside it has the sum.",
            unit="suffix: tok/s",
            least=0,
            stacked=True,
            queries=(Query(expr=rate("source_tokens_total", "source"), legend="{{source}}"),),
        ),
        Panel(
            title="Epochs",
            description="How often the run has read each source. From about five times on, repetition costs quality.",
            unit="none",
            least=0,
            steps=((None, "green"), (5, "red")),
            queries=(Query(expr=of_run("source_epochs", "source"), legend="{{source}}"),),
        ),
    ),
)
