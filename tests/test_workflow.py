"The workflow, with a script in the place of `hff`; the same file is that script"
import json
import os
import shlex
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

if __name__!='__main__': pytest.importorskip('snakemake')

ROOT = Path(__file__).parent.parent
RUNS = [f'two_stream-F2F-c23-s{i}-0000000{i}' for i in range(3)]
BOOKS = ['table3_ablation', 'table4_cross_manipulation', 'summary']
FOLDERS = {n: n[:-8]+f'abcdef{i:02}' for i, n in enumerate(RUNS)}           # with the id of the data, so another hash
PLAN = dict(preset='mini', seeds=[0], runs={n: dict(recipe={}, faces='faces', cross={}, tables=['table3']) for n in RUNS},
            folders=FOLDERS, notebooks=BOOKS)


def stand_in(words):
    "Note what was asked for; write the plan; fail where a file says so"
    asked, here = dict(zip(words[1::2], words[2::2])), Path(os.environ['HFF_RUNS'])/'mini'
    here.mkdir(parents=True, exist_ok=True)
    with open(here/'asked.txt', 'a') as f: f.write(json.dumps(words)+'\n')
    if asked['--step']=='plan': (here/'plan.json').write_text(json.dumps(PLAN))
    if (here/f"fail-{asked.get('--run')}").exists(): sys.exit('hff: the loss is nan')


class Flow:
    def __init__(self, d): self.d, self.steps = d, d/'mini/steps'

    def run(self, *args, profile='local', config=()):
        "Exit status, and what was asked of the stand-in"
        (self.d/'mini').mkdir(exist_ok=True)
        (asked := self.d/'mini/asked.txt').write_text('')
        path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get('PYTHONPATH')])])
        flow = ROOT/'hff/workflow'
        cmd = [sys.executable, '-m', 'snakemake', '-s', flow/'Snakefile', '--profile', flow/f'profiles/{profile}', '-d', self.d, *args,
               '--config', f'hff={shlex.quote(sys.executable)} {shlex.quote(__file__)}', 'gpu=0', *config]
        env = os.environ | dict(HFF_RUNS=str(self.d), HFF_ROOT=str(ROOT), PYTHONPATH=path)
        r = subprocess.run([*map(str, cmd)], env=env, capture_output=True, text=True, timeout=120)
        self.text = r.stdout+r.stderr
        return r.returncode, [json.loads(x) for x in asked.read_text().splitlines()]

    def planned(self):
        "As after the plan, with every job still to do"
        self.steps.mkdir(parents=True)
        (self.steps/'plan.json').write_text(json.dumps(PLAN))
        return self


def steps_of(asked): return [tuple(a[3:]) for a in asked]


@pytest.fixture
def flow(tmp_path): return Flow(tmp_path)


def test_failure_resume_and_change(flow):
    (flow.d/'mini').mkdir()
    (flow.d/f'mini/fail-{RUNS[1]}').touch()
    odd = "/data/it's a {tree} $HOME"
    code, asked = flow.run('--cores', '2', config=['seeds=0,1', f'data_root={odd}', 'cross=dfd=/a b,celebdf_v1=/c'])
    given = ['--seeds', '0,1', '--data-root', odd, '--cross', 'dfd=/a b,celebdf_v1=/c']
    assert code!=0 and asked[0]==['reproduce', '--preset', 'mini', *given, '--jobs', '2', '--step', 'plan'], flow.text
    assert sorted(steps_of(asked)[1:])==[('--step', 'run', '--run', n) for n in RUNS]              # the failed one stops no other run
    assert {p.name for p in flow.steps.glob('*.done')}=={f'run-{FOLDERS[n]}.done' for n in (RUNS[0], RUNS[2])}
    assert 'the loss is nan' in (flow.steps/f'logs/run-{FOLDERS[RUNS[1]]}.txt').read_text()
    (flow.d/f'mini/fail-{RUNS[1]}').unlink()
    same = ['seeds=0,1', f'data_root={odd}', 'cross=dfd=/a b,celebdf_v1=/c']
    code, asked = flow.run('--cores', '2', config=same)                                          # what is finished is not done again
    assert code==0, flow.text
    book = lambda b: ('--step', 'notebook', '--only', b)
    got = steps_of(asked)
    assert got[:2]==[('--step', 'run', '--run', RUNS[1]), ('--step', 'pack')]
    assert sorted(got[2:4])==sorted(map(book, BOOKS[:2])) and got[4:]==[book('summary'), ('--step', 'page')]
    plan = json.loads((flow.steps/'plan.json').read_text())
    plan['runs'][RUNS[0]]['cross'] = dict(dfd='crops')
    (flow.steps/'plan.json').write_text(json.dumps(plan))
    code, asked = flow.run('--cores', '2', config=same)                                          # a run whose entry changed, and what follows from it
    got = steps_of(asked)
    assert code==0 and [a for a in got if 'run' in a]==[('--step', 'run', '--run', RUNS[0])] and ('--step', 'pack') in got, flow.text
    assert flow.run('--cores', '2', config=same)==(0, [])                                        # and then nothing


def test_the_jobs_of_a_plan(flow):
    code, asked = flow.planned().run('-n')
    assert code==0 and not asked, flow.text
    jobs = dict(line.split() for line in flow.text.split('Job stats:')[1].split('\n\n')[0].splitlines()[3:])
    assert jobs==dict(all='1', notebook='3', pack='1', page='1', run='3', total='9'), flow.text


@pytest.mark.skipif(not find_spec('snakemake_executor_plugin_slurm'), reason='no plugin')
def test_the_slurm_profile(flow):
    code, asked = flow.planned().run('-n', profile='slurm', config=['gpu=1'])
    assert code==0 and not asked, flow.text
    run = flow.text.split('rule run:')[1].split('rule ')[0]
    assert all(w in run for w in ('slurm_partition=gpu', 'gpu=1', 'mem_mb=32000', 'runtime=1440')), run
    assert 'slurm_partition=cpu' in flow.text.split('rule pack:')[1].split('rule ')[0]


if __name__=='__main__': stand_in(sys.argv[1:])
