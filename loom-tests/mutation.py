"""What the scripts that plant mistakes share: a copy of the sources, a mistake in it, and the models that
must see it. What a mistake is, and where it is written down, is theirs."""
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


def table(file, key):
    """The entries of one of the tables beside this file."""
    return tomllib.loads((HERE / file).read_text())[key]


class DoesNotBuild(Exception):
    pass


class Copy:
    """A copy of the sources in which mistakes are planted."""

    def __init__(self, name, with_fixtures=False):
        """The same path every time: dependencies stay built. New timestamps: what a mistake of an earlier
        run left built is never taken for the sources."""
        base = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target")) / "loom"
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
        """One model: (passed, executions, seconds). A crash, a deadlock report, a livelock (branch limit) and
        running out of time count as failures of the model, that is, the mistake is seen."""
        passed, executions, seconds, _ = self.run.explore(
            binaries[name], name, bound or self.models[name]["preemption_bound"], limit)
        return passed, executions, seconds
