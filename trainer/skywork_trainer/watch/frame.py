"""A view as a frame of the terminal."""

from rich.console import Console, Group, RenderableType
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from skywork_trainer.watch.view import View

_COLORS = {"Training": "green", "Succeeded": "green", "Failed": "red", "Degraded": "yellow"}
_TWO_COLUMNS = 90
_LONG = frozenset(("time", "last failure", "restarts", "stragglers", "avoided nodes"))


def frame(view: View, width: int) -> RenderableType:
    """Return the view as something rich can print in so many columns."""
    parts: list[RenderableType] = [_head(view)]
    if view.bars:
        parts.append(_bars(view, width))
    parts += [Text(""), _facts(view, width)]
    if view.domains:
        parts += [Text(""), _domains(view)]
    if view.diagnoses:
        parts += [Text(""), *(_diagnosis(kind, message) for kind, message in view.diagnoses)]
    if view.events:
        parts += [Text(""), _events(view)]
    if view.problem:
        parts += [Text(""), Text(view.problem, style="yellow")]
    return Panel(Group(*parts), title=Text(view.name), title_align="left", border_style="dim", width=width)


def printed(view: View, console: Console) -> None:
    """Print one frame."""
    console.print(frame(view, console.width))


def _head(view: View) -> Text:
    head = Text(view.state, style=f"bold {_COLORS.get(view.state, 'yellow')}")
    return head.append(f"  {view.why}", style="default not bold") if view.why else head


def _bars(view: View, width: int) -> Table:
    table = Table.grid(padding=(0, 1))
    table.add_column(no_wrap=True)
    table.add_column()
    table.add_column(no_wrap=True)
    for bar in view.bars:
        drawn = ProgressBar(
            total=1.0, completed=bar.part, width=max(width // 3, 10), complete_style="green", finished_style="green"
        )
        table.add_row(Text(bar.label), drawn, Text(bar.text))
    return table


def _facts(view: View, width: int) -> RenderableType:
    short = [fact for fact in view.facts if fact[0] not in _LONG]
    pairs = 2 if width >= _TWO_COLUMNS else 1
    table = Table.grid(padding=(0, 2))
    for _ in range(pairs):
        table.add_column(style="dim", no_wrap=True)
        table.add_column()
    rows = -(-len(short) // pairs)
    for at in range(rows):
        # Down the first column, then the second: neighbours stay neighbours.
        cells = [fact for column in range(pairs) for fact in short[at + column * rows : at + column * rows + 1]]
        table.add_row(*(Text(cell) for fact in cells for cell in fact))
    below = Table.grid(padding=(0, 2))
    below.add_column(style="dim", no_wrap=True)
    below.add_column()
    for name, value in view.facts:
        if name in _LONG:
            below.add_row(Text(name), Text(value))
    return Group(table, below) if below.rows else table


def _domains(view: View) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim", title_justify="left")
    referenced = any(domain.reference_loss for domain in view.domains)
    sized = any(domain.bits_per_byte for domain in view.domains)
    drawn = any(domain.curve for domain in view.domains)
    table.add_column("domain", no_wrap=True)
    for name, present in (("loss", True), ("in stage", True), ("bits/byte", sized), ("reference", referenced)):
        if present:
            table.add_column(name, justify="right", no_wrap=True)
    if drawn:
        table.add_column("", no_wrap=True)
    for domain in view.domains:
        tone = "red" if domain.change.startswith("+") else "green" if domain.change else ""
        cells = [Text(domain.name), Text(domain.loss), Text(domain.change, style=tone)]
        cells += [Text(domain.bits_per_byte)] if sized else []
        cells += [Text(domain.reference_loss)] if referenced else []
        cells += [Text(domain.curve, style="cyan")] if drawn else []
        table.add_row(*cells)
    return table


def _diagnosis(kind: str, message: str) -> Text:
    return Text(f"! {kind}: ", style="bold yellow").append(message, style="default not bold")


def _events(view: View) -> Table:
    table = Table.grid(padding=(0, 1))
    table.add_column(style="dim", justify="right", no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column()
    for event in view.events:
        table.add_row(Text(event.age), Text(event.reason, style="yellow" if event.warning else ""), Text(event.message))
    return table
