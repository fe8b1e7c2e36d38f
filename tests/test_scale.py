"The preset `paper` at its full number of videos, without their content"
from dataclasses import asdict, fields, replace

import numpy as np
import pytest

from hff.cli import main
from hff.experiments import experiment
from hff.extract import faces_id, make_cropping, read_faces
from hff.manifest import identity_leaks, read_manifest
from hff.paths import HffError
from hff.readers import index_source
from hff.recipe import METHODS, Recipe, load_preset, preset_recipe
from hff.reproduce import Data, faces_of
from hff.scale import COUNTS, estimate, images_of, link_tree, made_up_faces, network_size, recipe_notes, table_work_apart, totals
from hff.sources import read_ffpp
from hff.verify import coverage_of, verify_manifest
from trees import make_tree, real


def test_every_setting_says_where_it_comes_from(tmp_path):
    notes, p = recipe_notes('paper'), load_preset('paper')
    assert [*notes.field]==[*p['crop'], *p['recipe']] and {*notes.field[notes.part.eq('recipe')], 'crop'}=={f.name for f in fields(Recipe)}
    assert {*p['crop'], 'frames'}==set(asdict(make_cropping())) and notes.why.str.strip().ne('').all()
    assert notes.set_index('field').loc[['backbone', 'lr', 'optimizer', 'batch_size', 'image_size', 'quality'], 'from'].eq('stated').all()
    assert notes.set_index('field').loc[['epochs', 'schedule', 'frames', 'augment', 'seed'], 'from'].eq('chosen').all()
    bad = tmp_path/'my.yaml'
    bad.write_text('recipe:\n  epochs: 3\n')
    with pytest.raises(HffError, match='my.yaml line 2'): recipe_notes(str(bad))


def test_the_preset_is_the_recipe_of_before():
    "Written out in full, but the same run: names don't change with a default that is spelt"
    lean = Recipe(switches=dict(head='cosine'), watch=1, crop=preset_recipe('paper').crop)
    assert preset_recipe('paper')==lean and preset_recipe('paper').hash==lean.hash


def test_estimate_adds_up():
    e = estimate(tables=('table3',), seeds=(0, 1))
    assert len(e)==2*len(experiment('table3', 'paper')) and e.run.is_unique and e.gpu_hours.gt(0).all()
    full, rgb = (e[e.run.str.startswith(f'{m}-F2F')].iloc[0] for m in ('two_stream', 'rgb'))
    assert 2<full.gmacs/rgb.gmacs<3 and full.gpu_hours>2*rgb.gpu_hours
    assert abs(full.gmacs-14.02)<.01 and network_size(full.recipe)['trainable']==53_242_478-2            # a cosine head has no bias
    assert full.trained==10*2*720*32 and full.gpu_gb>16*53e6/1e9
    assert np.isclose(estimate(tables=('table3',), utilisation=.05).gpu_hours.sum(), e.gpu_hours.sum())   # half the speed, half the runs
    t = totals(e).set_index('quantity')
    assert t.value['runs']==12 and np.isclose(t.value['time'], e.gpu_hours.sum()) and 'assumed' in t.how['time'] and t.how.ne('').all()
    assert np.isclose(t.value['crops'], 160_000*197_000/1e9, rtol=.01)                                    # one quality, one size


def test_images_follow_the_trainer():
    "The estimate's number of images is what the trainer's own rule gives"
    from hff.trainer import batches_of
    r = preset_recipe('paper')
    for x in (r, replace(r, train_methods=METHODS), replace(r, balanced=False), replace(r, train_methods=METHODS, balanced=False)):
        labels = np.repeat([0, 1], [720*32, len(x.train_methods)*720*32])
        assert sum(map(len, batches_of(x, labels, 0)))==images_of(x)['epoch']


@pytest.fixture(scope='module')
def tree(tmp_path_factory):
    d = tmp_path_factory.mktemp('ffpp')
    (d/'clip.mp4').write_bytes(real(0))
    return link_tree(d/'tree', d/'clip.mp4', ('c23',))


def test_a_full_tree_is_read(tree, tmp_path):
    assert index_source('ffpp', tree, tmp_path/'m.parquet')==5000
    m = read_manifest(tmp_path/'m.parquet')
    assert m.status.eq('have').all() and not len(identity_leaks(m))
    n = m.groupby(['method', 'split']).size().unstack()
    assert len(n)==5 and all((n[s]==k).all() for s, k in COUNTS.items())
    some = m.groupby('method').head(40)
    assert coverage_of(verify_manifest(some, tree))==1
    assert len({p.stat().st_ino for p in (tree/'manipulated_sequences/Deepfakes/c23/videos').iterdir()})==1     # links: no space


def test_a_full_table_is_split_and_shuffled(tree, tmp_path):
    faces = made_up_faces(read_ffpp(tree, quality='c23'), tmp_path/'faces')
    t = read_faces(faces)
    assert len(t)==160_000 and t.status.eq('ok').mean()>.99
    r = preset_recipe('paper', train_methods=METHODS)
    work = table_work_apart(faces, r)
    assert [work[k] for k in ('train', 'val', 'test')]==[115_200, 22_400, 22_400]
    assert abs(work['steps']-images_of(r)['epoch']/32)<.01*work['steps']
    assert work['mb']<700, f"{work['mb']} MB"                                                              # about 230 on one machine
    assert sum(v for v in work.values() if isinstance(v, float))<60


@pytest.mark.parametrize('name,quality,cut', [('ffpp', 'c23', []), ('ffpp', 'c40', []), ('dfd', 'c23', ['--splits', 'test']), *((n, '', ['--splits', 'test']) for n in ('celebdf_v1', 'dfdcp', 'df1'))])
def test_faces_cut_out_beforehand_are_found(name, quality, cut, tmp_path, monkeypatch, capsys):
    "`hff data index` and `hff faces --preset paper` come to the content id that the plan looks for"
    def key(m, root, out=None, jobs=1, shard=None, **s): raise HffError(faces_id(m, root, **asdict(make_cropping(**s))))
    if quality: make_tree(name, tmp_path/name, quality='c40')
    t = make_tree(name, tmp_path/name)
    ffpp, r = t['options'].get('ffpp'), preset_recipe('paper', quality=quality if name=='ffpp' else 'c23')
    monkeypatch.setattr('hff.extract.extract_faces', key)
    with pytest.raises(HffError) as plan: faces_of(Data('paper', ffpp or t['root'], {name: t['root']}, 1), r, '' if name=='ffpp' else name)
    more = ['--ffpp-root', str(ffpp)] if ffpp else []
    assert main(['data', 'index', name, str(t['root']), '--out', str(tmp_path/'m.parquet'), *(['--quality', quality] if quality else []), *more])==0
    assert main(['faces', str(tmp_path/'m.parquet'), '--root', str(t['root']), '--preset', 'paper', *cut, *more])==1
    assert capsys.readouterr().err.splitlines()[-1]==f'hff: {plan.value}' and len(str(plan.value))==12
