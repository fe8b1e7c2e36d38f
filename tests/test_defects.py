"Mistakes that were found in published code: each is named, and shown not to be here"
import pickle
import warnings

import numpy as np
import pandas as pd
import pytest
import torch

import dfb_tree
import trees
from hff.checkpoints import load_checkpoint, save_checkpoint
from hff.compare import deepfakebench_groups, deepfakebench_video_auc
from hff.datasets import FaceDataset, epoch_batches
from hff.extract import extract_faces, read_faces
from hff.info import known_counts
from hff.manifest import identity_leaks
from hff.metrics import VIDEO, coverage, eer, evaluate, pool_videos, video_auc
from hff.models import FIDELITY, create_model
from hff.paths import HffError
from hff.readers import read_celebdf_list, read_source
from hff.recipe import preset_recipe
from hff.scores import check_scores, score_faces
from hff.trainer import is_better, lr_at, train
from hff.video import frame_indices
from test_trainer import Tiny, faces, recipe, tiny  # noqa: F401  (fixtures)


def scores(methods=('DF', 'F2F', 'FS', 'NT'), people=20, frames=3, seed=0):
    rng = np.random.default_rng(seed)
    rows = [('ffpp', m, 'c23', f'{p:03d}' if m=='real' else f'{p:03d}_{p+1:03d}', f, int(m!='real'), rng.normal()+k*.3)
            for k, m in enumerate(('real', *methods)) for p in range(people) for f in range(frames)]
    t = pd.DataFrame(rows, columns=[*VIDEO, 'frame', 'label', 'logit'])
    return t.assign(score=1/(1+np.exp(-t.logit)), status='ok')


def test_01_videos_of_one_name_are_not_merged():
    "Grouping by folder name makes one video of the four fakes of a target"
    s = scores()
    assert len(pool_videos(s))==5*20 and len(deepfakebench_groups(s))==2*20
    assert video_auc(s)!=deepfakebench_video_auc(s)


def test_02_real_and_fake_of_one_name_stay_two():
    "The label of a group was the floor of its mean: a fake became real"
    s = scores(methods=('fake',)).assign(dataset='ffiw', video=lambda d: d.video.str[:3])
    v = pool_videos(s)
    assert len(v)==40 and v.label.sum()==20 and deepfakebench_groups(s).label.sum()==0


def test_03_eer_is_where_both_errors_are_equal():
    assert eer([0, 0, 0, 1, 1, 1, 1], [.26, .30, .81, .09, .60, .73, .19])==pytest.approx(.5)


def test_04_accuracy_by_class_does_not_depend_on_the_order():
    s = scores(methods=('DF',)).assign(score=.9)                               # everything is called fake
    for t in (s, s.sample(frac=1, random_state=0)):
        r = evaluate(t.assign(logit=2.2), draws=10).iloc[0]
        assert (r.frame_acc_real, r.frame_acc_fake)==(0, 1)


def test_05_the_test_set_chooses_nothing(faces, tmp_path, tiny):  # noqa: F811
    "Another test set, the same weights and the same epoch"
    t = pd.read_parquet(faces/'faces.parquet')
    kept = []
    for i, split in enumerate((t.split, t.split.where(~(t.split.eq('test') & t.frame.eq(0)), 'unused'))):
        folder = tmp_path/f'f{i}'
        folder.mkdir()
        for p in faces.glob('*.png'): (folder/p.name).write_bytes(p.read_bytes())
        (folder/'landmarks.npy').write_bytes((faces/'landmarks.npy').read_bytes())
        for c in t.crop[t.split.eq('test') & t.status.eq('ok')] if i else (): (folder/c).write_bytes((faces/t.crop[0]).read_bytes())   # other pictures, too
        t.assign(split=split).to_parquet(folder/'faces.parquet')
        run = train(recipe, folder, tmp_path/f'r{i}', show=False)
        kept.append(((run/'model.safetensors').read_bytes(), pd.read_csv(run/'log.csv').drop(columns='seconds').to_csv()))
    assert kept[0]==kept[1]
    assert set(pd.read_csv(run/'log.csv'))=={'epoch', 'train_loss', 'val_loss', 'val_frame_auc', 'val_video_auc', 'lr', 'seconds'}
    assert is_better(dict(val_video_auc=.9, val_loss=1, test_auc=0), dict(val_video_auc=.8, val_loss=1, test_auc=1), 'val_video_auc')


def test_06_evenly_spaced_is_not_the_first_32():
    i = frame_indices(270, 32)
    assert len(i)==32 and i[0]==0 and i[-1]==269 and np.ptp(np.diff(i))<=1


def test_07_an_unreadable_crop_is_an_error_row_even_when_it_is_the_first(faces, tmp_path):  # noqa: F811
    t = pd.read_parquet(faces/'faces.parquet').iloc[:4]
    for c in t.crop: (tmp_path/c).write_bytes((faces/c).read_bytes())
    (tmp_path/t.crop[0]).write_bytes(b'spoilt'); (tmp_path/t.crop[2]).unlink()
    s = score_faces(Tiny(), t, tmp_path)
    assert s.status.tolist()==['error', 'ok', 'error', 'ok'] and s.score.isna().tolist()==[True, False, True, False]
    with pytest.raises(HffError, match='extract the faces again'): FaceDataset(t, tmp_path)


@pytest.mark.parametrize('name', ['celebdf_v1', 'celebdf_v2'])
def test_08_celebdf_keeps_both_real_folders_and_its_test_out_of_training(name, tmp_path):
    t = trees.make_tree(name, tmp_path)
    m = read_source(name, t['root'])
    listed = read_celebdf_list(t['root']/'List_of_testing_videos.txt')
    train_ = m[m.split.eq('train')]
    assert not set(train_.video) & set().union(*listed.values()) and set(m[m.split.eq('test')].video)==set().union(*listed.values())
    assert all(train_.path.str.startswith(f).any() for f in ('Celeb-real', 'YouTube-real', 'Celeb-synthesis'))
    assert not m.split.eq('val').any()                                          # test is not called validation


def test_09_reals_are_the_partners_of_the_fakes_and_nothing_is_in_all_splits(tmp_path):
    t = trees.make_tree('df1', tmp_path/'df1')
    m = read_source('df1', t['root'], **t['options'])
    assert set(m[m.label.eq(0)].base)=={'ffpp'} and m[m.label.eq(0)].path.str.startswith('original_sequences/youtube/c23').all()
    for name in ('dfd', 'uadfv'):
        u = trees.make_tree(name, tmp_path/name)
        assert set(read_source(name, u['root']).split)=={'test'}
        assert not len(identity_leaks(read_source(name, u['root'], split='person')))


def test_10_masks_choose_the_face_clip_by_clip(tmp_path):
    t = trees.make_tree('dfd', tmp_path/'dfd')
    m = read_source('dfd', t['root'])
    bare = m[m['mask'].ne('')].index[0]
    m.loc[bare, 'mask'] = ''
    f = read_faces(extract_faces(m, t['root'], tmp_path/'faces', frames=2, size=64, jobs=2))
    fakes = f[f.label.eq(1) & f.frame.gt(0)]
    assert fakes[fakes.video.eq(m.video[bare])].reason.eq('several faces, no mask').all()
    assert fakes[fakes.video.ne(m.video[bare])].choice.eq('mask').all()


def test_11_lmdb_keys_of_both_spellings_and_folders_called_video(tmp_path):
    dfb_tree.build(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        m = read_source('deepfakebench', tmp_path/'rgb')
    assert m.path.str.contains('original_videos').any() and m.path.str.contains('manipulated_videos').any()
    assert not m.path.str.contains('\\', regex=False).any()


def test_12_the_schedule_acts_at_every_step_and_epochs_are_as_many_as_asked(faces, tmp_path, tiny):  # noqa: F811
    rates = [lr_at(i, 40, 1e-3, 'one_cycle') for i in range(40)]
    assert len(set(rates))>30 and max(rates)==pytest.approx(1e-3, rel=.02) and rates[-1]<1e-6
    run = train(recipe, faces, tmp_path, show=False)
    log = pd.read_csv(run/'log.csv')
    assert len(log)==recipe.epochs and log.lr.nunique()==recipe.epochs
    with pytest.raises(HffError, match='schedule'): preset_recipe('smoke', schedule='linear')


def test_13_each_epoch_has_its_order_and_a_wrapped_model_loads(tmp_path):
    a, b = (np.concatenate(epoch_batches(64, 8, 0, e)) for e in (0, 1))
    assert (a!=b).any() and sorted(a)==sorted(b)
    net = create_model('rgb', backbone='mobilenetv2_100', pretrained=False, image_size=64)
    save_checkpoint(torch.nn.DataParallel(net), tmp_path/'m.safetensors')
    x = torch.zeros(1, 3, 64, 64)
    assert torch.equal(load_checkpoint(tmp_path/'m.safetensors')(x).logits, net.eval()(x).logits)


def test_14_the_last_batch_is_scored_too(faces):  # noqa: F811
    t = pd.read_parquet(faces/'faces.parquet').iloc[:7]
    assert score_faces(Tiny(), t, faces, batch_size=4).status.eq('ok').all()


def test_15_randomness_outside_decides_nothing(faces, tmp_path, tiny):  # noqa: F811
    made = []
    for i in (1, 2):
        np.random.seed(i); torch.manual_seed(i)
        run = train(recipe, faces, tmp_path/str(i), show=False)
        made.append((run/'model.safetensors').read_bytes())
    assert made[0]==made[1]


def test_17_labels_of_several_classes_are_refused():
    with pytest.raises(HffError, match='label 3'): check_scores(scores().assign(label=lambda d: d.label*3))


def test_18_a_probability_is_taken_once(faces):  # noqa: F811
    t = pd.read_parquet(faces/'faces.parquet').iloc[:5]
    net = Tiny().eval()
    with torch.no_grad(): want = torch.softmax(net(FaceDataset(t, faces).batch(range(5))[0].float()/127.5-1).logits, 1)[:, 1]
    assert np.allclose(score_faces(net, t, faces).score, want, atol=1e-5)


def test_19_a_fault_is_no_score_of_one_half_and_labels_do_not_shift(tmp_path):
    s = scores(methods=('DF',))
    s.loc[s.video.eq('003'), ['score', 'logit', 'status']] = np.nan, np.nan, 'error'
    assert coverage(s)==39/40 and pool_videos(s).score.isna().sum()==1
    assert evaluate(s, draws=10).n_real[0]==19 and evaluate(s, draws=10, policy='impute_0.5').n_real[0]==20
    t = trees.make_tree('ffiw', tmp_path)
    first = sorted(p for p in t['root'].rglob('*.mp4') if '/source/' in p.as_posix())[0]
    before = read_source('ffiw', t['root']).set_index('path').label
    first.unlink()
    after = read_source('ffiw', t['root']).set_index('path').label
    assert (before.drop(first.relative_to(t['root']).as_posix())==after).all() and len(after)==len(before)-1


def test_20_the_first_line_of_the_list_is_a_video(tmp_path):
    (p := tmp_path/'List_of_testing_videos.txt').write_text('1 Celeb-real/id0_0000.mp4\n0 Celeb-synthesis/id0_id1_0000.mp4\n')
    assert {k: len(v) for k, v in read_celebdf_list(p).items()}=={'Celeb-real': 1, 'YouTube-real': 0, 'Celeb-synthesis': 1}


def test_21_both_kernel_orders_have_names():
    assert FIDELITY['author']['kernel_order']=='repeat' and FIDELITY['paper']['kernel_order']=='tile'


def test_22_the_margin_is_taken_off_a_cosine():
    for preset in ('smoke', 'mini', 'paper'):
        r = preset_recipe(preset)
        assert r.loss!='am_softmax' or r.switches['head']=='cosine'
    logits = create_model('rgb', backbone='mobilenetv2_100', pretrained=False, image_size=64, head='cosine').eval()(torch.randn(2, 3, 64, 64)*9).logits
    assert logits.abs().max()<=1.0001


def test_24_a_pickle_is_not_executed(tmp_path):
    class Evil:
        def __reduce__(self): return open, (str(tmp_path/'executed'), 'w')
    for name in ('a.pth', 'b.pkl'):
        (tmp_path/name).write_bytes(pickle.dumps(Evil()))
        with pytest.raises(HffError): load_checkpoint(tmp_path/name)
    torch.save(dict(model=Evil()), tmp_path/'c.pth')
    with pytest.raises(HffError): load_checkpoint(tmp_path/'c.pth')
    np.save(tmp_path/'d.npy', np.array([Evil()], dtype=object), allow_pickle=True)
    (tmp_path/'landmarks').mkdir(); np.savez(tmp_path/'landmarks/x.npz', landmarks=np.array([Evil()], dtype=object))
    m = pd.DataFrame([dict(dataset='toy', method='real', quality='', video='x', split='test', label=0, path='x.png', source='', target='x')])
    (tmp_path/'x.png').write_bytes((trees.PORTRAITS/'male_20.jpg').read_bytes())
    t = read_faces(extract_faces(m, tmp_path, tmp_path/'faces', size=64))
    assert t.status.tolist()==['error'] and not (tmp_path/'executed').exists()


def test_26_celebdf_without_a_version_is_refused(tmp_path):
    with pytest.raises(HffError, match='celebdf_v1 or celebdf_v2'): read_source('Celeb-DF', tmp_path)


def test_27_published_counts_add_up():
    for name in ('ffpp', 'celebdf_v2', 'dfdc', 'dfdcp', 'ffiw', 'dfd', 'uadfv'):
        t = known_counts(name).query("definition==''").set_index('split')
        assert (t.drop('total')[['real', 'fake']].sum()==t.loc['total', ['real', 'fake']]).all(), name
