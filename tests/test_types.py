"Type hints: what a program that checks types sees of the public API, and defaults that are what their hints say"
import importlib
import inspect
import pkgutil
import subprocess
import sys
import types
import typing
from pathlib import Path

import pytest

import hff

ROOT = Path(__file__).parent.parent


def test_mypy(tmp_path):
    "Settings and what they leave out: [tool.mypy] in pyproject.toml"
    pytest.importorskip('mypy')
    def mypy(*args): return subprocess.run([sys.executable, '-m', 'mypy', '--cache-dir', tmp_path/'cache', *args], cwd=ROOT, capture_output=True, text=True)
    r = mypy()
    assert r.returncode==0, r.stdout+r.stderr
    wrong = tmp_path/'typed_use.py'
    wrong.write_text("import hff\nx: int = hff.load_checkpoint('a.safetensors')\nhff.create_model('rgb', image_sise=1, image_size=None)\n")
    r = mypy(wrong)
    assert r.returncode==1 and '[assignment]' in r.stdout and '[arg-type]' in r.stdout           # it can fail


def fits(value, hint):
    "Is a default what its hint says? Hints that say nothing of a kind count as fitting"
    if typing.get_origin(hint) is typing.Annotated: return fits(value, typing.get_args(hint)[0])
    if isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union: return any(fits(value, h) for h in typing.get_args(hint))
    kind = typing.get_origin(hint) or hint
    if kind is None: return value is None
    if kind is float: return isinstance(value, (int, float)) and not isinstance(value, bool)
    if kind is int: return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, kind) if isinstance(kind, type) else True


def misfits(functions):
    out = []
    for f in functions:
        hints = typing.get_type_hints(f, include_extras=True)
        out += [f'{f.__module__}.{f.__qualname__}: {k}={p.default!r}' for k, p in inspect.signature(f).parameters.items()
                if k in hints and p.default is not p.empty and '_FACTORY' not in type(p.default).__name__ and not fits(p.default, hints[k])]
    return out


def test_defaults_are_what_their_hints_say():
    modules = [importlib.import_module(m.name) for m in pkgutil.walk_packages(hff.__path__, 'hff.') if '_modidx' not in m.name and '__main__' not in m.name]
    own = [o for m in modules for n in getattr(m, '__all__', ()) if getattr(o := getattr(m, n), '__module__', '')==m.__name__ and callable(o)]
    functions = [f for o in own for f in ([o] if inspect.isfunction(o) else [m for m in vars(o).values() if inspect.isfunction(m) and m.__module__==o.__module__ and m.__annotations__] if inspect.isclass(o) else [])]
    assert len(functions)>400 and misfits(functions)==[]
    def bad(a:str=None, b:int=1.5, c:float=1, d:'str|None'=None, e:list=()): pass
    assert [m.rsplit(': ', 1)[1] for m in misfits([bad])]==['a=None', 'b=1.5', 'e=()']


def test_marker_ships():
    assert (ROOT/'hff/py.typed').is_file() and "'py.typed'" in (ROOT/'setup.py').read_text()
