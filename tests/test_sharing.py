"A network for others: the four files, what comes back from them, and what is refused"
import json
import os
import pickle
import shutil
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import huggingface_hub
import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

import hff
from hff.checkpoints import load_checkpoint, save_checkpoint
from hff.metrics import evaluate
from hff.models import create_model
from hff.paths import HffError, read_json, sha256, write_json
from hff.recipe import make_recipe
from hff.scores import read_scores, write_scores
from hff.sharing import FILES, Detector, share

ROOT = Path(__file__).parent.parent
PORTRAITS = ROOT/'tests/data/portraits'


def toy_scores(dataset='miniff', methods=('DF', 'F2F')):
    rng = np.random.default_rng(0)
    t = pd.DataFrame([(dataset, m, 'c23', f'{p:03d}', f, int(m!='real'), rng.normal()+(m!='real')) for m in ('real', *methods) for p in range(12) for f in range(3)],
                     columns=['dataset', 'method', 'quality', 'video', 'frame', 'label', 'logit'])
    return t.assign(score=1/(1+np.exp(-t.logit)), status='ok')


@pytest.fixture(scope='module')
def run(tmp_path_factory):
    "What `hff train` leaves behind, made by hand"
    d = tmp_path_factory.mktemp('secret')/'rgb-F2F-c23-s0-01234567'
    recipe = make_recipe(model='rgb', backbone='mobilenetv2_100', pretrained=str(d.parent/'start.pth'), image_size=64, epochs=1)
    torch.manual_seed(3)
    m = create_model('rgb', backbone='mobilenetv2_100', pretrained=False, image_size=64).train()
    with torch.no_grad(): [m(torch.randn(4, 3, 64, 64)) for _ in range(20)]
    save_checkpoint(m, d/'model.safetensors', recipe=recipe, trained_on='miniff', cropping=dict(margin=1.5, detector='mtcnn'))
    write_json(asdict(recipe), d/'recipe.json'); write_json(dict(versions=dict(hff='0.1.0', torch='9.9')), d/'done.json')
    write_scores(toy_scores(), d/'scores.parquet'); write_scores(toy_scores('dfd', ('DFD',)), d/'cross/dfd-0123.parquet')
    return d


@pytest.fixture
def folder(run, tmp_path):
    Detector.from_run(run).save_pretrained(tmp_path/'shared')
    return tmp_path/'shared'


def refused(folder, *words):
    with pytest.raises(HffError) as e: Detector.from_pretrained(folder)
    assert all(w in str(e.value) for w in words) and '\n' not in str(e.value), e.value


def test_there_and_back(run, folder, tmp_path):
    assert sorted(p.name for p in folder.iterdir())==sorted(FILES)
    a, b = Detector.from_run(run), Detector.from_pretrained(folder)
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad(): assert torch.equal(a(x).logits, b(x).logits) and torch.equal(load_checkpoint(run/'model.safetensors')(x).logits, b(x).logits)
    assert (b.card, b.recipe, b.model.config, b.model.report.cropping)==(a.card, a.recipe, a.model.config, dict(margin=1.5, detector='mtcnn'))
    b.save_pretrained(tmp_path/'again')
    assert sha256(tmp_path/'again')==sha256(folder)                                      # what was fetched can be passed on
    pd.testing.assert_frame_equal(b.predict(PORTRAITS, device='cpu'), hff.predict(PORTRAITS, run, device='cpu'))
    pd.testing.assert_frame_equal(hff.predict(PORTRAITS, folder, device='cpu'), hff.predict(PORTRAITS, run, device='cpu'))   # the folder is a checkpoint too
    assert b.recipe['pretrained']=='start.pth' and not any(b'secret' in p.read_bytes() for p in folder.iterdir())   # no path of the machine


def test_card_is_measured(run, folder):
    card = (folder/'README.md').read_text()
    head = yaml.safe_load(card.split('---\n')[1])
    results = head['model-index'][0]['results']
    assert head['library_name']=='hff' and head['license']=='apache-2.0' and len(results)==4          # DF, F2F, both; DFD
    e = pd.concat([evaluate(read_scores(f), together=True) for f in (run/'scores.parquet', run/'cross/dfd-0123.parquet')])
    for r, row in zip(results, e.itertuples(), strict=True):
        assert r['dataset']['name']==f'{row.dataset} c23 {row.method}'
        m = {m['name']: m for m in r['metrics']}['video AUC']
        assert [m['value'], *m['args']['interval_95'], m['args']['videos']]==[*np.round([row.video_auc, row.video_lo, row.video_hi], 4), row.n_videos]
        assert f'{row.frame_auc:.3f} ({row.frame_lo:.3f} to {row.frame_hi:.3f})' in card
    for words in ('not a detector of real deepfakes', '## Limits', '## Training data', '| epochs | 1 |', 'torch 9.9', 'luo2021generalizing', 'scored 36 of 36'): assert words in card
    huggingface_hub.ModelCard(card)                                                                    # readable for the Hub's own reader


def test_card_without_a_run(tmp_path):
    "A checkpoint alone: nothing is claimed, and other training data bring other terms"
    m = create_model('rgb', backbone='mobilenetv2_100', pretrained=False, image_size=64)
    d = Detector.from_run(save_checkpoint(m, tmp_path/'m.safetensors', trained_on='ffpp'))
    assert 'No scores came' in d.card and 'license: other' in d.card and 'how it does on other footage is not known' in d.card
    d.save_pretrained(tmp_path/'out')
    assert not (tmp_path/'out/recipe.json').exists() and Detector.from_pretrained(tmp_path/'out').recipe is None
    assert 'mtcnn' in Detector.from_run(hff.paths.asset('miniff_two_stream.safetensors')).card


def test_only_the_four_files_are_sent(run, folder, monkeypatch):
    "push_to_hub is the library's own; what it would upload is looked at here"
    sent = {}
    api = huggingface_hub.HfApi
    monkeypatch.setattr(api, 'create_repo', lambda self, repo_id, **kw: huggingface_hub.RepoUrl(f'https://huggingface.co/{repo_id}'))
    def upload(self, *, repo_id, folder_path, **kw): sent.update({p.relative_to(folder_path).as_posix(): p.read_bytes() for p in Path(folder_path).rglob('*') if p.is_file()}, repo=repo_id); return f'https://huggingface.co/{repo_id}/commit/1'
    monkeypatch.setattr(api, 'upload_folder', upload)
    assert share(run, push='me/detector')=='https://huggingface.co/me/detector/commit/1'
    assert sent.pop('repo')=='me/detector' and sent=={n: (folder/n).read_bytes() for n in FILES}
    (folder/'diary.txt').write_text('private'); sent.clear()
    Detector.from_pretrained(folder).push_to_hub('me/detector')
    assert sorted(sent)==sorted([*FILES, 'repo'])
    def fail(self, **kw): raise OSError('no network\nmore')
    monkeypatch.setattr(api, 'create_repo', fail)
    with pytest.raises(HffError, match='me/detector cannot be written .no network'): share(run, push='me/detector')


def test_repository(folder, monkeypatch, tmp_path, capsys):
    "A repository is fetched by name, four files of it, into the Hub's cache of links"
    def fetch(repo, *, allow_patterns, **kw):
        assert repo=='me/detector' and sorted(allow_patterns)==sorted(FILES) and kw['revision']=='v1' and not kw['force_download']
        snap, blobs = tmp_path/'models--me--detector/snapshots/abc', tmp_path/'models--me--detector/blobs'
        snap.mkdir(parents=True); blobs.mkdir()
        for i, n in enumerate(FILES): shutil.copy(folder/n, blobs/f'{i}'); (snap/n).symlink_to(f'../../blobs/{i}')
        return str(snap)
    monkeypatch.setattr('hff.sharing.snapshot_download', fetch)
    assert Detector.from_pretrained('me/detector', revision='v1').card==(folder/'README.md').read_text()
    assert f"model.safetensors of {(folder/'model.safetensors').stat().st_size:,} bytes, sha256 {sha256(folder/'model.safetensors')}" in capsys.readouterr().err


def test_repository_out_of_reach(monkeypatch, tmp_path):
    refused('no/such/folder', 'no repository can have that name')
    monkeypatch.setattr('huggingface_hub.constants.HF_HUB_OFFLINE', True)
    with pytest.raises(HffError, match='not in the cache'): Detector.from_pretrained('nobody/nothing', cache_dir=tmp_path)


class Bomb:
    def __init__(self, path): self.path = path
    def __reduce__(self): return os.mkdir, (str(self.path),)


def test_pickles_are_not_opened(folder, tmp_path):
    evil = pickle.dumps(Bomb(tmp_path/'ran'))
    (folder/'model.safetensors').write_bytes(evil); refused(folder, 'no safetensors file', 'not opened')
    (folder/'model.safetensors').unlink(); (folder/'pytorch_model.bin').write_bytes(evil); refused(folder, 'pytorch_model.bin', 'may run code')
    (folder/'pytorch_model.bin').unlink(); refused(folder, 'has no model.safetensors')
    assert not (tmp_path/'ran').exists()
    pickle.loads(evil); assert (tmp_path/'ran').exists()                                 # it would have


@pytest.mark.parametrize('file, change, words', [
    ('config.json', lambda d: d['config'].update(image_size=96), ('config.json', 'config.image_size (96, 64)')),
    ('config.json', lambda d: d['config'].update(backbone='local-dir:/tmp'), ('config.backbone',)),
    ('config.json', lambda d: d.update(trained_on='everything'), ("trained_on ('everything', 'miniff')",)),
    ('config.json', lambda d: d['cropping'].update(detector='os:system'), ('cropping.detector',)),
    ('config.json', lambda d: d.clear(), ('config.json', 'disagree')),
    ('recipe.json', lambda d: d.update(epochs=100), ('recipe.json', 'recipe.epochs (100, 1)')),
])
def test_one_story(folder, file, change, words):
    d = read_json(folder/file); change(d); write_json(d, folder/file)
    refused(folder, *words)


def test_damaged_folders(folder):
    whole = {n: (folder/n).read_bytes() for n in FILES}
    def put(name, data): [(folder/n).write_bytes(b) for n, b in whole.items()]; (folder/name).write_bytes(data)
    put('model.safetensors', whole['model.safetensors'][:-1000]); refused(folder, 'not a readable weight file')
    put('model.safetensors', b''); refused(folder, 'no safetensors file')
    put('config.json', b'[1]'); refused(folder, 'holds no settings')
    put('config.json', b'{"config":'); refused(folder, 'not valid JSON')
    put('recipe.json', b'\xff\xfe'); refused(folder, 'recipe.json', 'not valid JSON')
    put('README.md', b'x'*(2**20+1)); refused(folder, 'larger than 1 MB')
    put('README.md', b'fine'); (folder/'recipe.json').unlink(); refused(folder, 'recipe.json', 'disagree')
    put('README.md', b'\xff changed by hand'); assert 'changed by hand' in Detector.from_pretrained(folder).card     # the text is free
    (folder/'config.json').unlink(); refused(folder, 'has no config.json')


def test_weights_of_another_network(folder):
    t = load_file(folder/'model.safetensors')
    t = {k: v[:1] if k=='head.1.bias' else v for k, v in t.items()}
    from safetensors import safe_open
    with safe_open(folder/'model.safetensors', 'pt') as f: meta = f.metadata()
    save_file(t, folder/'model.safetensors', meta)
    refused(folder, 'does not fit its network', 'head.1.bias')


@pytest.mark.parametrize('name', FILES)
def test_no_way_out_of_the_folder(folder, tmp_path, name):
    away = tmp_path/'elsewhere'; away.mkdir()
    shutil.move(folder/name, away/name); (folder/name).symlink_to(away/name)
    refused(folder, name, 'leads out')
    (folder/name).unlink(); (folder/name).mkdir()
    refused(folder, 'not a file')


def test_code_of_others_is_not_imported(run, tmp_path):
    "A checkpoint names the detector that cut out its faces; one that is not part of hff is imported for who says so himself"
    m = load_checkpoint(run/'model.safetensors')
    (tmp_path/'evil_faces.py').write_text(f'import os\nos.mkdir({str(tmp_path/"ran")!r})\ndef find(image): return []\n')
    sys.path.insert(0, str(tmp_path))
    try:
        Detector.from_run(save_checkpoint(m, tmp_path/'m.safetensors', cropping=dict(detector='evil_faces:find'))).save_pretrained(tmp_path/'out')
        d = Detector.from_pretrained(tmp_path/'out')
        with pytest.raises(HffError, match='evil_faces:find.*code outside hff.*detector='): d.predict(PORTRAITS)
        assert not (tmp_path/'ran').exists()
        assert d.predict(PORTRAITS, detector='evil_faces:find').status.eq('missing').all() and (tmp_path/'ran').exists()
    finally: sys.path.remove(str(tmp_path))


@pytest.mark.parametrize('recipe', [dict(train_methods=None), dict(train_methods=[1]), dict(colour='red')])
def test_recipe_that_is_none(recipe, tmp_path):
    m = create_model('rgb', backbone='mobilenetv2_100', pretrained=False, image_size=64)
    p = save_checkpoint(m, tmp_path/'m.safetensors', recipe=recipe)
    with pytest.raises(HffError, match='Recipe: '): Detector.from_run(p)


def test_lists_for_settings(run, folder, tmp_path):
    (folder/'recipe.json').write_text('[1]'); refused(folder, 'recipe.json', 'holds no settings')
    mine = shutil.copytree(run, tmp_path/'mine')
    (mine/'done.json').write_text('[1]')
    with pytest.raises(HffError, match='done.json holds no settings'): Detector.from_run(mine)
    (mine/'done.json').write_text('{"versions": [1]}')
    assert 'Trained with' not in Detector.from_run(mine).card


def test_words_of_others_are_text(run, tmp_path):
    "HTML, pictures, rows and half characters from a header, a table or a name"
    evil = '<script>x</script> ![](http://a.b/c)\n\n# Head | \ud800'
    mine = shutil.copytree(run, tmp_path/'a<b>')
    recipe = read_json(run/'recipe.json') | dict(data=evil)
    save_checkpoint(load_checkpoint(run/'model.safetensors'), mine/'model.safetensors', recipe=recipe, trained_on=evil, cropping={evil: evil})
    write_scores(toy_scores(evil[:-1]), mine/'scores.parquet'); write_json(dict(versions={evil: evil}), mine/'done.json')
    share(mine, tmp_path/'out')
    text = (tmp_path/'out/README.md').read_text().split('---\n', 2)[2]
    assert '<' not in text and '](' not in text and '\n# Head' not in text and text.count('&lt;script&gt;')>=8 and '# a&lt;b&gt;\n' in text and '\\| ?' in text
    assert Detector.from_pretrained(tmp_path/'out').model.report.trained_on==evil                    # only the card is cleaned


def test_files_of_others_stay(run, tmp_path):
    "Only a new or empty folder, or what an earlier call wrote"
    out = tmp_path/'out'
    (out/'.git').mkdir(parents=True)
    for _ in range(2): assert share(run, out)==str(out)
    (out/'notes.txt').touch(); before = sha256(out)
    with pytest.raises(HffError, match='not empty, and not from hff share .it holds notes.txt'): share(run, out)
    assert sha256(out)==before
    (out/'notes.txt').unlink(); write_json({}, out/'config.json'); before = sha256(out)
    with pytest.raises(HffError, match='not from hff share'): share(run, out)
    mine = tmp_path/'mine'; mine.mkdir(); (mine/'README.md').write_text('my project')
    with pytest.raises(HffError, match='not from hff share'): share(run, mine)
    assert sha256(out)==before and (mine/'README.md').read_text()=='my project' and len(list(mine.iterdir()))==1
    whole = sha256(run)
    (tmp_path/'link.safetensors').symlink_to(run/'model.safetensors')
    for given in (run/'model.safetensors', tmp_path/'link.safetensors'):
        with pytest.raises(HffError, match='the run itself'): share(given, run)
    assert sha256(run)==whole


def test_command(run, tmp_path, capsys):
    from hff.cli import main
    assert main(['share', str(run), '--out', str(tmp_path/'o')])==0 and (tmp_path/'o/README.md').is_file()
    assert main(['share', str(run)])==1 and 'Say where to' in capsys.readouterr().err
    assert main(['share', str(run), '--out', str(run)])==1 and main(['share', str(tmp_path/'none'), '--out', str(tmp_path/'p')])==1
    (tmp_path/'file').touch()
    assert main(['share', str(run), '--out', str(tmp_path/'file')])==1 and capsys.readouterr().err.count('\n')==3
    assert sha256(run/'model.safetensors') and not (tmp_path/'p').exists()


SCORES = """
import json, sys, torch
torch.set_num_threads(1)
import hff
t = hff.Detector.from_pretrained(sys.argv[1]).predict(sys.argv[2], device='cpu')
print(json.dumps([hff.__file__, [x.hex() for x in t.logit.dropna()]]))
"""


def test_wheel_scores_the_same(folder, tmp_path):
    "The package as others get it, in a place of its own and away from the checkout: the same scores to the last bit"
    src, wheels, site = tmp_path/'src', tmp_path/'wheels', tmp_path/'site'
    shutil.copytree(ROOT/'hff', src/'hff', ignore=shutil.ignore_patterns('__pycache__'))
    for n in ('setup.py', 'settings.ini', 'pyproject.toml', 'README.md', 'LICENSE', 'MANIFEST.in'): shutil.copy(ROOT/n, src/n)
    pip = [sys.executable, '-m', 'pip', '-q', '--disable-pip-version-check']
    subprocess.run([*pip, 'wheel', '--no-deps', '--no-build-isolation', '-w', wheels, src], check=True, capture_output=True)
    wheel, = wheels.glob('hff-*.whl')
    subprocess.run([*pip, 'install', '--no-deps', '--no-index', '--no-compile', '--target', site, wheel], check=True, capture_output=True)
    def scores(where):
        r = subprocess.run([sys.executable, '-c', SCORES, folder, PORTRAITS], cwd='/', env=os.environ | dict(PYTHONPATH=str(where), TQDM_DISABLE='1'), capture_output=True, text=True)
        assert r.returncode==0, r.stderr
        return json.loads(r.stdout.splitlines()[-1])
    (here, ours), (there, theirs) = scores(ROOT), scores(site)
    assert Path(here).is_relative_to(ROOT) and Path(there).is_relative_to(site) and ours==theirs and len(set(ours))==4
