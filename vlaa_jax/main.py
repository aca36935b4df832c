"""Entry point: ``python -m vlaa_jax.main --config=configs/grpo.py:tiny --workdir=runs/tiny``."""

import importlib
import os
import re
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from absl import app, flags, logging
from ml_collections import config_flags
from rich.console import Console

from vlaa_jax import __version__, disk
from vlaa_jax.schema import UserError, printable
from vlaa_jax.settle import settle, with_installed_config

CONFIG = config_flags.DEFINE_config_file("config", None, "Config file, with a variant after ':'.")
WORKDIR = flags.DEFINE_string("workdir", "runs/default", "Directory of the run.")
HOSTS = flags.DEFINE_enum(
    "hosts", "auto", ["auto", "one"], "auto joins the other processes of a cluster; one never does."
)
COORDINATOR = flags.DEFINE_string(
    "coordinator",
    os.environ.get("JAX_COORDINATOR_ADDRESS", ""),
    "ADDRESS:PORT of process 0, where the cluster does not say it.",
)
COUNT = flags.DEFINE_integer(
    "process_count", int(os.environ.get("JAX_NUM_PROCESSES", 0)), "Processes of the run."
)
INDEX = flags.DEFINE_integer(
    "process_id", int(os.environ.get("JAX_PROCESS_ID", -1)), "Number of this process, from 0."
)
SILENCE_S = flags.DEFINE_float(
    "host_silence_s", 30.0, "Seconds after which a host that is not heard counts as lost."
)
WAIT_S = flags.DEFINE_float("host_wait_s", 3600.0, "Longest wait for a host that is alive.")


def main(argv: Sequence[str]) -> None:
    """Settles the settings and hands over to the task."""
    logging.set_verbosity(logging.FATAL)  # errors are raised, too, and told in one line
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # XLA cries after two minutes of compiling
    try:
        with interruptible():
            if len(argv) > 1:
                raise UserError(f"unexpected argument {argv[1]!r}; options look like --config=FILE")
            if CONFIG.value is None:
                raise UserError("--config is missing, e.g. --config=configs/grpo.py:tiny")
            settings = settle(CONFIG.value.to_dict())
            _run(settings, Path(WORKDIR.value).expanduser())
    except UserError as error:
        disk.end_output()
        sys.exit(f"vlaa_jax: {error}")
    except BrokenPipeError:
        disk.end_output()
        sys.exit("vlaa_jax: nobody reads what it says any more; the same command goes on")
    except KeyboardInterrupt as reason:
        disk.end_output()
        print(interrupted(reason), file=sys.stderr, flush=True)
        # Everything is closed; a thread that still compiles would run into what Python takes down.
        os._exit(130)


SIGNALS = (signal.SIGTERM, signal.SIGINT)
"""A preempted machine says SIGTERM first: it leaves through the same door as Ctrl-C."""


@contextmanager
def interruptible() -> Iterator[None]:
    """Has a signal interrupt what is done inside; behind it there is nothing left to stop.

    Python would still raise it while it takes itself down, where nobody can handle it.
    """
    for number in SIGNALS:  # a shell may have switched Ctrl-C off for the background
        signal.signal(number, signal.default_int_handler)
    others = sys.unraisablehook

    def hook(lost: Any) -> None:
        if isinstance(lost.exc_value, KeyboardInterrupt):
            # It fell into a finalizer, which cannot let it out: once more, a moment later.
            threading.Timer(0.1, signal.raise_signal, (signal.SIGINT,)).start()
        else:
            others(lost)

    sys.unraisablehook = hook
    try:
        yield
    finally:
        for number in SIGNALS:
            signal.signal(number, signal.SIG_IGN)


def interrupted(reason: KeyboardInterrupt) -> str:
    """What is said of a run that was told to go."""
    why = f" ({reason})" if str(reason) else ""
    return f"vlaa_jax: interrupted{why}; the same command goes on after the last saved step, if any"


TASKS = {
    "evaluate": "vlaa_jax.evaluate.run",
    "grpo": "vlaa_jax.train.grpo",
    "heldout": "vlaa_jax.study.heldout",
    "perplexity": "vlaa_jax.train.perplexity",
    "pipeline": "vlaa_jax.pipeline.run",
    "sft": "vlaa_jax.train.sft",
    "study": "vlaa_jax.study.run",
}
"""Module of each task; its ``run(settings, workdir, console)`` does the work."""

HOST_TASKS = frozenset(("pipeline", "study"))
"""Tasks that need no accelerator themselves; a study leaves it to its commands."""


TRAINERS = frozenset(("grpo", "sft"))
"""Tasks that benchmarks may be run in."""
SPREAD_TASKS = TRAINERS | {"evaluate"}
"""Tasks that several hosts share; the others run on one."""


def _run(settings: Any, workdir: Path) -> None:
    kept = "what was written is kept, the same command goes on from there"
    if settings.task in HOST_TASKS:
        with disk.refusals(workdir, kept):
            importlib.import_module(TASKS[settings.task]).run(settings, workdir, Console())
        return
    _check_versions()
    from vlaa_jax.parallel import hosts, notices
    from vlaa_jax.parallel.start import Where, start

    start(
        Where(
            HOSTS.value, COORDINATOR.value, COUNT.value, INDEX.value, SILENCE_S.value, WAIT_S.value
        )
    )
    notices.watch(hosts.want_to_leave)
    with hosts.ending_together(), disk.refusals(workdir, kept):
        if hosts.count() > 1 and settings.task not in SPREAD_TASKS:
            raise UserError(f"task {settings.task} runs on one host: start it there, --hosts=one")
        console = Console(quiet=not hosts.is_writer())
        if settings.task in TRAINERS:
            _train(settings, workdir, console)
        else:
            _start_jax(settings)
            importlib.import_module(TASKS[settings.task]).run(settings, workdir, console)


def _train(settings: Any, workdir: Path, console: Console) -> None:
    """Trains; whatever is wrong with records is said before jax is imported."""
    from vlaa_jax.evaluate.validation import prepared  # train/ does not know evaluate/
    from vlaa_jax.train.opening import opened

    with opened(settings, workdir, console) as found, prepared(settings, workdir) as benchmarks:
        _start_jax(settings)
        task = importlib.import_module(TASKS[settings.task])
        task.run(settings, found, console, benchmarks)


def _warn_of_memory(settings: Any) -> None:
    """Says before anything is loaded that a run is likely not to fit, and what would make it."""
    import jax

    if jax.default_backend() == "cpu" or not hasattr(settings, "optimizer"):
        return
    from vlaa_jax.plan.check import memory_problem
    from vlaa_jax.policy.reading import config_of

    problem = memory_problem(settings, config_of(settings.model.checkpoint), jax.devices())
    if problem and jax.process_index() == 0:
        print(f"warning: {problem}")


def _say(line: str) -> None:
    print(printable(line), file=sys.stderr, flush=True)


def _start_jax(settings: Any) -> None:
    import jax

    from vlaa_jax.parallel import compile_cache

    if settings.run.compilation_cache:
        compile_cache.use(settings.run.compilation_cache, _say)
    try:
        devices = jax.devices()
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        raise UserError(f"jax finds no device to run on: {reason}") from error
    where = f"  {jax.process_count()} hosts" if jax.process_count() > 1 else ""
    if jax.process_index() == 0:
        print(
            f"vlaa_jax {__version__}  jax {jax.__version__}  {len(devices)} x {devices[0]}{where}"
        )
    _warn_of_memory(settings)


def _check_versions() -> None:
    """Stops with one line where the installed jax or flax is too old."""
    from importlib.metadata import PackageNotFoundError, version

    newer = sys.version_info >= (3, 12)
    for package, least in (("jax", (0, 10, 2)), ("flax", (0, 12, 10 if newer else 8))):
        try:
            found = version(package)
        except PackageNotFoundError as error:
            raise UserError(f"{package} is not installed: pip install -e .") from error
        if tuple(int(part) for part in re.findall(r"\d+", found)[:3]) < least:
            wanted = ".".join(map(str, least))
            raise UserError(f"{package} {found} is too old: install {package} >= {wanted}")


def parse(argv: Sequence[str]) -> Sequence[str]:
    """Parses the command line and loads the config; whatever is wrong becomes one line."""
    argv = with_installed_config(argv)
    for word, following in zip(argv, (*argv[1:], ""), strict=True):
        name, equals, value = word.lstrip("-").partition("=")
        file = (value if equals else following).partition(":")[0]
        if word.startswith("-") and name == "config" and file and not Path(file).is_file():
            sys.exit(f"vlaa_jax: --config: {file} does not exist")
    try:
        rest = flags.FLAGS(argv)
        if CONFIG.value is not None:
            CONFIG.value.to_dict()  # a file that could not be read is reported only on use
        return rest
    except (KeyError, AttributeError) as error:
        sys.exit(f"vlaa_jax: {_unknown_key(_last_words(error), argv)}")
    except (flags.Error, LookupError, TypeError, ValueError) as error:
        sys.exit(f"vlaa_jax: {_last_words(error)}")
    except (OSError, ImportError, SyntaxError) as error:
        sys.exit(f"vlaa_jax: --config cannot be read: {_last_words(error)}")


def _unknown_key(words: str, argv: Sequence[str]) -> str:
    """Names the whole key that was given, and the key that was probably meant."""
    key = words.strip("'\"").split(" ")[0].strip("'\"")
    given = (arg.lstrip("-").partition("=")[0] for arg in argv)
    full = next((name for name in given if name.split(".")[-1] == key), key)
    meant = re.search(r'Did you mean "([^"]+)"', words)
    return f"{full}: unknown config key" + (f"; did you mean {meant[1]!r}?" if meant else "")


def _last_words(error: BaseException) -> str:
    """The message of an error as one line; of a traceback inside it, the last line alone."""
    text = str(error.args[0] if isinstance(error, KeyError) and error.args else error)
    if "Traceback" in text:
        text = [line for line in text.splitlines() if line.strip()][-1]
        text = text.removeprefix("ValueError: ")
    return " ".join(text.replace("\\n", " ").replace("\\'", "").split())


if __name__ == "__main__":
    app.run(main, flags_parser=parse)
