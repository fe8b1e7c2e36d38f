"""One row of figures/bench/versions.csv: which tests pass in the environment that runs this.
`ENV/bin/python .ci/versions.py`, where ENV has the package's requirements and pytest, hypothesis, setuptools and wheel; the package itself is taken from this checkout."""
import csv, os, platform, re, subprocess, sys
from importlib.metadata import version
from pathlib import Path

TOP = Path(__file__).resolve().parent.parent
TESTS = tuple(sys.argv[1:]) or ('models', 'checkpoints', 'metrics', 'exchange', 'inference', 'sharing')
out = TOP/'figures/bench/versions.csv'

r = subprocess.run([sys.executable, '-m', 'pytest', '-q', '-p', 'no:cacheprovider', *(f'tests/test_{t}.py' for t in TESTS)], cwd=TOP, capture_output=True, text=True,
                   env=os.environ | dict(PYTHONPATH=str(TOP), PYTHONDONTWRITEBYTECODE='1', TQDM_DISABLE='1'))
print(r.stdout[-4000:], r.stderr[-2000:])
count = lambda word: int((re.findall(rf'(\d+) {word}', r.stdout.splitlines()[-1]) or [0])[-1])
row = dict(python=platform.python_version()) | {p: version(p).partition('+')[0] for p in ('torch', 'torchvision', 'timm', 'numpy', 'pandas', 'huggingface_hub', 'av')}
rows = list(csv.DictReader(out.open())) if out.is_file() else []
rows = [x for x in rows if any(x[k]!=v for k, v in row.items())]
rows.append(row | dict(tests=' '.join(TESTS), passed=count('passed'), failed=count('failed')+count('errors?'), skipped=count('skipped')))
with out.open('w', newline='') as f:
    w = csv.DictWriter(f, rows[-1], lineterminator='\n'); w.writeheader(); w.writerows(sorted(rows, key=lambda x: (x['python'], x['torch'])))
raise SystemExit(r.returncode)
