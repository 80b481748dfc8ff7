"""What the structure promises: import directions, light modules, no cycles, small files."""

import ast
import subprocess
import sys
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("server", "adapters", "kernels")
ALLOWED_IMPORTS = {
    "server": {"server", "adapters", "kernels"},
    "adapters": {"adapters", "kernels"},
    "kernels": {"kernels"},
}
# Where torch may be loaded, and what stays light in there: it is imported by the API process, the
# command line, or tests that run in milliseconds. All other modules are light.
HEAVY = (
    "weft.kernels",
    "weft.adapters",
    "weft.server.demo",
    "weft.server.engine",
    "weft.server.adapterhub",
    "weft.server.inspection",
    "weft.server.verification",
)
LIGHT_ADAPTERS = (
    "confinement",
    "identity",
    "alias",
    "aliases",
    "catalogue",
    "checkpoint",
    "custody",
    "database",
    "directory",
    "errors",
    "extents",
    "files",
    "header",
    "holds",
    "ledger",
    "pool",
    "presence",
    "registry",
    "retention",
    "store",
    "strict_json",
    "tenancy",
    "version",
)
LIGHT_ENGINE = (
    "boot",
    "claims",
    "client",
    "connection",
    "drafting",
    "fairness",
    "finish",
    "gate",
    "history",
    "launch",
    "limits",
    "lookahead",
    "messages",
    "ngrams",
    "page_tables",
    "pages",
    "prefix_cache",
    "probe",
    "residency",
    "scheduler",
    "sequence",
    "speculation",
    "step_plan",
    "unsupported",
)
LIGHT = {f"weft.adapters.{name}" for name in LIGHT_ADAPTERS} | {
    f"weft.server.engine.{name}" for name in LIGHT_ENGINE
}
WORD_LISTS = {"weft.server.demo.lexicon"}
MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 60
MAX_KERNEL_LINES = 100


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(("weft", *(parts[:-1] if parts[-1] == "__init__" else parts)))


SOURCES = {
    module_name(path): path for package in PACKAGES for path in (ROOT / package).rglob("*.py")
}
TREES = {name: ast.parse(path.read_text()) for name, path in SOURCES.items()}


def imported_names(tree: ast.Module) -> set[str]:
    """Every module that a file names in an import, wherever in the file it stands."""
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            children = {f"{node.module}.{alias.name}" for alias in node.names}
            submodules = children & SOURCES.keys()
            names |= submodules
            if len(submodules) < len(children):
                names.add(node.module)
    return names


def run_python(code: str, cwd: Path) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=cwd, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.parametrize("package", PACKAGES)
def test_imports_point_downwards_only(package: str) -> None:
    wrong = {
        f"{name} imports {target}"
        for name, tree in TREES.items()
        if name.split(".")[1] == package
        for target in imported_names(tree)
        if target.startswith("weft.") and target.split(".")[1] not in ALLOWED_IMPORTS[package]
    }
    assert not wrong


def test_the_packages_are_never_imported_by_their_bare_names() -> None:
    wrong = {
        f"{name} imports {target}"
        for name, tree in TREES.items()
        for target in imported_names(tree)
        if target.split(".")[0] in PACKAGES
    }
    assert not wrong


def test_no_import_cycles() -> None:
    graph = {name: imported_names(tree) & SOURCES.keys() - {name} for name, tree in TREES.items()}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" → ".join(error.args[1]))


def light_modules() -> list[str]:
    def is_heavy(name: str) -> bool:
        return any(name == heavy or name.startswith(f"{heavy}.") for heavy in HEAVY)

    return sorted(LIGHT | {name for name in SOURCES if not is_heavy(name)})


def loads_torch(modules: list[str], cwd: Path) -> bool:
    code = f"import importlib, sys\nfor m in {modules}: importlib.import_module(m)\n"
    return run_python(code + "print('torch' in sys.modules)", cwd) == "True"


def test_light_modules_load_no_torch(tmp_path: Path) -> None:
    modules = light_modules()
    if loads_torch(modules, tmp_path):
        pytest.fail(f"load torch: {[m for m in modules if loads_torch([m], tmp_path)]}")


def test_the_bare_name_kernels_is_not_ours() -> None:
    """transformers probes for a package of this name; from the checkout it must not find ours."""
    code = (
        "from importlib.util import find_spec; spec = find_spec('kernels'); "
        "print(spec.origin if spec and spec.origin else '')"
    )
    assert not run_python(code, ROOT).startswith(str(ROOT))


@pytest.mark.parametrize("package", PACKAGES)
def test_top_folders_are_namespace_packages(package: str) -> None:
    assert not (ROOT / package / "__init__.py").exists()
    assert (ROOT / package / "py.typed").exists()


def test_files_stay_small() -> None:
    sizes = {name: len(path.read_text().splitlines()) for name, path in SOURCES.items()}
    too_long = {name for name, size in sizes.items() if size > MAX_FILE_LINES}
    assert too_long <= WORD_LISTS, too_long


def is_kernel(function: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    return any("jit" in ast.unparse(decorator) for decorator in function.decorator_list)


def test_functions_stay_small() -> None:
    too_long = {
        f"{name}.{node.name}": node.end_lineno - node.lineno + 1
        for name, tree in TREES.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.end_lineno
        if node.end_lineno - node.lineno
        >= (MAX_KERNEL_LINES if is_kernel(node) else MAX_FUNCTION_LINES)
    }
    assert not too_long


def test_every_file_says_what_it_owns() -> None:
    silent = [name for name, tree in TREES.items() if not ast.get_docstring(tree)]
    assert not silent


# ---- tenants

# The operator's tools for the tenants file, whose subject are names: they act for no tenant.
NAMES_TENANTS = {"weft.server.tenants_editor", "weft.server.cli.tenants"}
# Policies make contexts; the rest are the server's own, for its checks of itself.
MAKES_CONTEXTS = {
    "weft.adapters.tenancy",
    "weft.server.engine.client",
    "weft.server.engine.loads",
    "weft.server.engine.probe",
    "weft.server.policy",
    "weft.server.tenants_file",
    "weft.server.verification",
}
# Where a tenant's name may stand: the key of a dict, and what people and Prometheus read.
TAKES_NAMES = {"get", "setdefault", "AdapterLabel", "AdapterName", "UsageKey", "error"}


def called(node: ast.Call) -> str:
    return ast.unparse(node.func).rpartition(".")[2]


def is_tenants_name(node: ast.expr) -> bool:
    """`tenant.id`, `lease.ctx.id`, …"""
    return (
        isinstance(node, ast.Attribute)
        and node.attr in ("id", "account")
        and ast.unparse(node.value).rpartition(".")[2] in ("tenant", "ctx", "owner", "context")
    )


def texts_of(function: ast.FunctionDef | ast.AsyncFunctionDef) -> dict[str, set[str]]:
    """The parameters that may be a string, each with what it is also called: an alias of a path."""
    given = function.args
    return {
        argument.arg: {argument.arg, *strings_in(argument.annotation)}
        for argument in (*given.posonlyargs, *given.args, *given.kwonlyargs)
        if argument.annotation is None or "str" in ast.unparse(argument.annotation)
    }


def strings_in(node: ast.AST | None) -> set[str]:
    constants = (each for each in ast.walk(node or ast.Pass()) if isinstance(each, ast.Constant))
    return {each.value for each in constants if isinstance(each.value, str)}


def owners_in(function: ast.FunctionDef | ast.AsyncFunctionDef) -> set[str]:
    """Variables that are made the owner of an adapter's name."""
    made = (each for each in ast.walk(function) if isinstance(each, ast.Call))
    owners = (
        value
        for call in made
        if called(call) == "AdapterName"
        for value in [*call.args[:1], *(k.value for k in call.keywords if k.arg == "owner")]
    )
    return {value.id for value in owners if isinstance(value, ast.Name)}


def takes_names(function: ast.FunctionDef | ast.AsyncFunctionDef) -> set[str]:
    """The parameters that are a tenant's name, as a string."""
    tenants = {"tenant", "tenant_id", "ctx", "owner", "account"}
    owners = owners_in(function)
    return {
        argument
        for argument, names in texts_of(function).items()
        if names & tenants or argument in owners
    }


@pytest.mark.parametrize(
    "code",
    [
        "def f(tenant: str): ...",
        "def f(*, owner): ...",
        "def f(who: Annotated[str, Path(alias='owner')]): ...",
        "async def f(who: str | None): return AdapterName(who, 'name')",
        "def f(who: str): return selection.AdapterName(name='name', owner=who)",
    ],
)
def test_a_tenants_name_is_seen_however_it_is_called(code: str) -> None:
    (function,) = ast.parse(code).body
    assert isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef)
    assert takes_names(function)


def test_no_function_takes_a_tenant_by_its_name() -> None:
    wrong = {
        f"{name}.{node.name}({argument})"
        for name, tree in TREES.items()
        if name not in NAMES_TENANTS
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        for argument in takes_names(node)
    }
    passed = {
        f"{name}: {ast.unparse(node)}"
        for name, tree in TREES.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and called(node) not in TAKES_NAMES
        if any(map(is_tenants_name, [*node.args, *(keyword.value for keyword in node.keywords)]))
    }
    assert not wrong | passed


def test_only_policies_make_contexts() -> None:
    makers = {
        name
        for name, tree in TREES.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and called(node) == "TenantContext"
    }
    assert makers <= MAKES_CONTEXTS
