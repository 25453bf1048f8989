"""Shell completion that knows the store: `layercache completion bash` prints the script.

What is offered is read from names of folders and small files, and whatever goes wrong there offers nothing: a shell
must not show a traceback because Tab was pressed.
"""

from collections.abc import Callable, Iterable
from pathlib import Path

import click
from click.shell_completion import CompletionItem, get_completion_class

Completer = Callable[[click.Context, click.Parameter, str], list[CompletionItem[str]]]

PLOTS = (
    *("probe", "predictions", "entropy", "agreement", "distance", "target", "depth", "text", "quantisation"),
    *("consistency", "delta_p", "pathways", "quality", "distributions", "cka", "mutual_knn", "perturbations"),
    *("transfer", "run_transfer", "concept_depth", "checkpoints", "answers", "rank_alpha", "adaptation", "tokens"),
    "lens",
)
"""Every chart of `layercache.report.PLOTS`, which would take a second to import."""
KINDS = ("probe", "probe_depth", "entropy", "text", "choices", "delta_p", "quality", "compare")
"""Every analysis of `layercache.recipe.ANALYSES`."""


@click.command("completion")
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def script(context: click.Context, shell: str) -> None:
    """Print a script that lets a shell complete commands, options, runs, labels, queries and the like.

    The names are those of the store that --store or LAYERCACHE_STORE says. Put the line into the shell's own file
    (~/.bashrc, ~/.zshrc, ~/.config/fish/config.fish).

    \b
    eval "$(layercache completion bash)"
    eval "$(layercache completion zsh)"
    layercache completion fish | source
    """
    found = get_completion_class(shell)
    assert found is not None
    click.echo(found(context.find_root().command, {}, "layercache", "_LAYERCACHE_COMPLETE").source())


def _completer(names: Callable[[Path], Iterable[str]], *, files: bool = False) -> Completer:
    """Make a completer of the names that a function returns for a store, also of the last one of several.

    Args:
        files: offer files too.
    """

    def complete(context: click.Context, param: click.Parameter, typed: str) -> list[CompletionItem[str]]:
        # Options that take several names take them with commas; arguments one a word.
        before, comma, last = typed.rpartition(",") if isinstance(param, click.Option) else ("", "", typed)
        try:
            found = list(names(Path(context.params.get("store") or "store")))
        except Exception:
            found = []
        offered = [CompletionItem(f"{before}{comma}{name}") for name in found if name.startswith(last)]
        return [*offered, CompletionItem(typed, type="file")] if files else offered

    return complete


def _runs(store: Path) -> Iterable[str]:
    from layercache.store import names

    found = names.runs(store)
    return dict.fromkeys([*(run.model for run in found), *(run.id for run in found)])


def _labels(store: Path) -> Iterable[str]:
    from layercache.store import names

    return names.labels(store)


def _data_sets(store: Path) -> Iterable[str]:
    from layercache.store import names

    return names.data_sets(store)


def _conditions(store: Path) -> Iterable[str]:
    from layercache.store import names

    return names.conditions(store)


def _queries(_store: Path) -> Iterable[str]:
    from layercache import resources

    return resources.names("queries")


def _recipes(_store: Path) -> Iterable[str]:
    from layercache import resources

    return [*resources.names("pipelines"), *sorted(path.name for path in Path().glob("*.toml"))]


def _models(_store: Path) -> Iterable[str]:
    from layercache import demo

    return demo.MODELS


def _sources(_store: Path) -> Iterable[str]:
    from layercache import demo

    return [f"demo:{name}" for name in demo.DATASETS]


runs, labels, data_sets, conditions = map(_completer, (_runs, _labels, _data_sets, _conditions))
queries = _completer(_queries)
plots, kinds = _completer(lambda _: PLOTS), _completer(lambda _: KINDS)
recipes = _completer(_recipes, files=True)
models, sources = _completer(_models, files=True), _completer(_sources, files=True)
