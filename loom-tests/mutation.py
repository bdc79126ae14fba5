"""What the scripts that plant mistakes share: tables of them, a copy of the sources, a mistake in it, and the
models that must see it. What a mistake is, and who must see it, is theirs."""
import contextlib
import importlib.machinery
import importlib.util
import os
import pathlib
import shutil
import subprocess
import sys
import tomllib

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parent


def load_script(name):
    """A script of this folder, as a module."""
    loader = importlib.machinery.SourceFileLoader(name, str(HERE / name))
    spec = importlib.util.spec_from_loader(name, loader)
    module = importlib.util.module_from_spec(spec)
    sys.dont_write_bytecode = True
    loader.exec_module(module)
    return module


def table(file, key, folder=HERE):
    """The entries of one of the tables in this folder or another."""
    return tomllib.loads((folder / file).read_text())[key]


def row(mutant):
    """A mutant's row on a page of the docs."""
    files = ", ".join(dict.fromkeys(edit["file"].removeprefix("src/") for edit in mutant["edit"]))
    names = ", ".join(f"`{name}`" for name in mutant["killed_by"])
    return f"| `{mutant['name']}` | {mutant['about']} | {files} | {names} |"


def misplaced(mutants):
    """Mutants whose mistake cannot be made in exactly one way."""
    for mutant in mutants:
        for edit in mutant["edit"]:
            places = (ROOT / edit["file"]).read_text().count(edit["find"])
            if places != 1:
                yield (f"{mutant['name']}: {edit['file']} has {places} places to change, "
                       f"not one:\n{edit['find']}")


def untold(mutants, page):
    """Mutants without a row on a page."""
    told = page.read_text().splitlines()
    for mutant in mutants:
        if row(mutant) not in told:
            yield f"{mutant['name']}: {page.name} lacks its row (--table prints it)"


def edits(mutant):
    """What `Copy.changed` wants."""
    return [(edit["file"], edit["find"], edit["replace"]) for edit in mutant["edit"]]


PASSED, FAILED, UNFINISHED = "passed", "failed", "not finished"


class DoesNotBuild(Exception):
    pass


class Copy:
    """A copy of the sources in which mistakes are planted."""

    def __init__(self, name, kind="loom", with_fixtures=False):
        """The same path every time: dependencies stay built. New timestamps: what a mistake of an earlier
        run left built is never taken for the sources."""
        base = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target")) / kind
        self.root = base / f"{name}-sources"
        self.target = base / name
        self.run = load_script("run")
        self.models = {model["name"]: model for model in table("MODELS.toml", "model")}
        shutil.rmtree(self.root, ignore_errors=True)
        files = subprocess.run(["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
                               cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True).stdout
        for file in filter(None, files.split("\0")):
            if (ROOT / file).is_file() and (with_fixtures or not file.startswith("fixtures/")):
                to = self.root / file
                to.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(ROOT / file, to)

    @contextlib.contextmanager
    def changed(self, edits):
        """The copy with some texts replaced: `edits` are (file, find, replace), each found once."""
        originals = {}
        try:
            for file, find, replace in edits:
                path = self.root / file
                text = path.read_text()
                originals.setdefault(path, text)
                assert text.count(find) == 1, f"{file}: not found once:\n{find}"
                path.write_text(text.replace(find, replace))
            yield
        finally:
            for path, text in originals.items():
                path.write_text(text)

    def build(self, models, epoch="mini"):
        """The binaries that hold these models: model -> path."""
        try:
            return self.run.build(epoch, root=self.root, target=self.target,
                                  files=self.run.files_of(models), hasty=True)
        except SystemExit as failed:
            raise DoesNotBuild(failed) from None

    def explore(self, binaries, name, limit, bound=None):
        """One model: (verdict, executions, seconds). A crash, a deadlock report and a livelock (branch limit) are
        failures of the model, that is, the mistake is seen; what running out of time is, its caller knows."""
        passed, executions, seconds, output = self.run.explore(
            binaries[name], name, bound or self.models[name]["preemption_bound"], limit)
        verdict = PASSED if passed else UNFINISHED if output.startswith("not finished") else FAILED
        return verdict, executions, seconds
