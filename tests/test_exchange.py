"Score files of other tools: what goes out comes back, and what is wrong stops"
import csv, json, re

import numpy as np
import pandas as pd
import pytest

from hff.exchange import C5_COLUMNS, C5_FURTHER, export_videos, import_frames, import_videos, path_identity, with_listed
from hff.metrics import POOLS, VIDEO, coverage, evaluate, frame_auc, pool_videos, video_auc
from hff.paths import HffError
from hff.scores import SCORE_COLUMNS, check_scores, read_scores, write_scores


def table(seed=0, people=9, methods=('real', 'DF', 'NT')):
    "Uneven videos, ties, a few rows and one whole video without a score"
    rng = np.random.default_rng(seed)
    rows = [('t', m, q, f'{p:03d}', f, int(m != 'real'), round(rng.normal() + (m != 'real'), 1))
            for m in methods for q in ('c23', '') for p in range(people) for f in range(rng.integers(1, 5))]
    d = pd.DataFrame(rows, columns='dataset method quality video frame label logit'.split())
    d = d.assign(score=1/(1 + np.exp(-d.logit)), status=rng.choice(['ok', 'missing', 'error'], len(d), p=[.8, .1, .1]), reason='why')
    d.loc[d.video.eq('003') & d.method.eq('DF'), 'status'] = 'missing'
    return check_scores(d.assign(score=d.score.where(d.status.eq('ok')), logit=d.logit.where(d.status.eq('ok'))))


@pytest.mark.parametrize('pool', POOLS)
def test_video_file_round_trip(tmp_path, pool):
    for seed in range(5):
        s = table(seed)
        meta = json.loads(export_videos(s, tmp_path/'a.scores.csv', pool, 'rgb', 'test', recipe='0123', device='cpu').read_text())
        b, v = import_videos(tmp_path/'a.scores.csv'), pool_videos(s, pool)
        assert b[VIDEO].values.tolist() == v[VIDEO].values.tolist() and b.label.tolist() == v.label.tolist()
        assert np.array_equal(b.score, v.score, equal_nan=True) and (b.frame == 0).all()
        assert coverage(b) == coverage(s) and video_auc(b, 'mean_logit') == pytest.approx(video_auc(s, pool), abs=1e-12)
        assert meta['coverage'] == dict(expected=len(v), **{k: int(b.status.eq(k).sum()) for k in ('ok', 'missing', 'error')})
        assert set(b.status[v.n_frames.eq(0)]) <= {'missing', 'error'} and b.score[b.status.ne('ok')].isna().all()   # never .5


def test_video_file_meets_the_contract(tmp_path):
    "Columns, cells and keys that the other side's strict reader accepts"
    s = table().assign(x_person=lambda d: d.video)
    beside = export_videos(s, tmp_path/'a.scores.csv', 'mean', 'rgb', 'test', checkpoint='0'*64, seed=3, command='hff evaluate runs/x')
    assert beside.name == 'a.scores.meta.json' and sorted(p.name for p in tmp_path.iterdir()) == ['a.scores.csv', 'a.scores.meta.json']
    with open(tmp_path/'a.scores.csv', newline='') as f: rows = list(csv.DictReader(f))
    assert list(rows[0])[:6] == C5_COLUMNS and all(c in C5_COLUMNS+C5_FURTHER or c.startswith('x_') for c in rows[0])
    assert len({(r['dataset'], r['key'], r['compression']) for r in rows}) == len(rows) and {r['x_person'] for r in rows} == set(s.video)
    for r in rows:
        assert r['label'] in '01' and r['status'] in ('ok', 'missing', 'error') and int(r['n_frames']) >= 0
        assert (0 <= float(r['score']) <= 1) if r['status'] == 'ok' else r['score'] == r['logit'] == ''
    m = json.loads(beside.read_text())
    assert set(m) == {'schema', 'detector', 'protocol', 'labels', 'aggregation', 'coverage', 'seed', 'env', 'git', 'command', 'created', 'calibration'}
    assert set(m['protocol']) == {'id', 'split', 'where', 'pack', 'pack_version', 'scheme_sha256'}
    assert re.fullmatch('[0-9a-f]{64}', m['protocol']['scheme_sha256'])
    assert set(m['detector']) == {'name', 'version', 'source', 'checkpoint_sha256', 'contract_version'} and m['aggregation']['clip_to_video'] == 'mean-prob'
    assert all(v is None or isinstance(v, str) for v in m['env'].values()) and m['seed'] == 3
    mixed = export_videos(s.sample(frac=1, random_state=0), tmp_path/'b.scores.csv', 'mean', 'rgb', 'test')
    assert json.loads(mixed.read_text())['protocol']['scheme_sha256'] == m['protocol']['scheme_sha256']      # the order of the rows decides nothing


def test_foreign_video_file(tmp_path):
    "Written by another tool: keys without a method, empty compression, no logit, a byte-order mark"
    p = tmp_path/'f.csv'
    p.write_text('\ufeffdataset,key,compression,label,score,status,method,n_clips,x_note\n'
                 'd,007,,0,1.0,ok,,4,a\nd,NA,,1,0.25,ok,swap,4,\nd,A/b/c,c23,1,,error,,0,\n', encoding='utf-8')
    t = import_videos(p)
    assert t[['method', 'quality', 'video', 'label', 'status']].values.tolist() == [
        ['real', '', '007', 0, 'ok'], ['swap', '', 'NA', 1, 'ok'], ['A', 'c23', 'b/c', 1, 'error']]
    assert np.isfinite(t.logit[:2]).all() and t.logit[0] > 30 and t.score.isna().tolist() == [False, False, True]
    assert t.x_note.tolist() == ['a', '', ''] and t.x_n_clips.tolist() == ['4', '4', '0']


def frame_file(path, seed=0, fake=1, logit=False):
    "Eight people, a real and two fake videos each, as another tool would write them"
    rng, rows = np.random.default_rng(seed), []
    for kind, y in (('original_sequences/youtube', 0), ('manipulated_sequences/Deepfakes', 1), ('manipulated_sequences/NeuralTextures', 1)):
        for p in range(8):
            for f in (0, 7, 1004):
                z = rng.normal() + y
                name = f'{p:03d}' if not y else f'{p:03d}_{p+1:03d}'
                s = (z if fake else -z) if logit else 1/(1+np.exp(-z if fake else z))
                rows.append((rf'datasets\rgb\FaceForensics++\{kind}\c23\frames\{name}\{f:03d}.png'.replace('/', '\\'), y if fake else 1-y, s))
    pd.DataFrame(rows, columns=['img_path', 'gt', 'pred']).to_csv(path, index=False)
    return path


NAMES = dict(path_column='img_path', label_column='gt', score_column='pred')


def test_frame_file_polarity_and_scale(tmp_path):
    p, first = tmp_path/'f.csv', None
    for fake in (1, 0):
        for logit in (False, True):
            s = import_frames(frame_file(p, fake=fake, logit=logit), fake=fake, logit=logit, **NAMES)
            assert list(s)[:9] == SCORE_COLUMNS and len(s[VIDEO].drop_duplicates()) == 24 and s.quality.eq('c23').all() and s.frame.max() == 1004
            first = s if first is None else first
            assert np.allclose(s.score, first.score, atol=1e-12) and np.allclose(s.logit, first.logit, atol=1e-9) and s.label.equals(first.label)
            assert frame_auc(s) == pytest.approx(frame_auc(first), abs=1e-12) and len(evaluate(s, draws=20)) == 2
            with pytest.raises(HffError, match='labels contradict the folders'): import_frames(p, fake=1-fake, logit=logit, **NAMES)
    with pytest.raises(HffError, match='logit=True'): import_frames(frame_file(p, logit=True), fake=1, **NAMES)
    with pytest.raises(TypeError, match='fake'): import_frames(p, **NAMES)           # polarity has no default
    write_scores(first, tmp_path/'s.parquet')
    pd.testing.assert_frame_equal(read_scores(tmp_path/'s.parquet'), first)


@pytest.mark.parametrize('change,say', [
    (lambda d: d.rename(columns=dict(gt='label')), 'no column gt; it has img_path, label, pred'),
    (lambda d: d.assign(gt=d['gt']*4), "'4'; only 0 and 1"),
    (lambda d: d.assign(pred=d.pred.astype(str).replace(d.pred.astype(str)[3], 'high')), 'no number'),
    (lambda d: pd.concat([d, d[:1]]), 'is there twice'),
    (lambda d: d.assign(img_path=d.img_path.str.split('\\').str[-2:].str.join('/')), 'of no known layout, first 000/000.png'),   # a folder name is no identity
    (lambda d: d.assign(pred=d.pred.where(d.index != 5, np.inf)), 'scores run from'),
    (lambda d: d[:0], 'no rows'),
])
def test_frame_file_refused(tmp_path, change, say):
    p = frame_file(tmp_path/'f.csv')
    change(pd.read_csv(p)).to_csv(p, index=False)
    with pytest.raises(HffError, match=re.escape(say)): import_frames(p, fake=1, **NAMES)


@pytest.mark.parametrize('pattern', ['(?P<video', 'no group', '(?P<video>a)(?P<video>b)', 'a{99999999999}', '(a)'])
def test_bad_pattern(tmp_path, pattern):
    with pytest.raises(HffError, match='The pattern .*write .*video'): import_frames(frame_file(tmp_path/'f.csv'), fake=1, identity=pattern, **NAMES)


def test_lost_scores_keep_their_rows(tmp_path):
    p = frame_file(tmp_path/'f.csv')
    d = pd.read_csv(p)
    d.loc[d.img_path.str.contains('003_004'), 'pred'] = np.nan
    d.to_csv(p, index=False)
    s = import_frames(p, fake=1, **NAMES)
    assert s.status.value_counts().to_dict() == dict(ok=66, error=6) and s.score.isna().sum() == 6 and coverage(s) == pytest.approx(22/24)
    listed = s[[*VIDEO, 'label']].drop_duplicates()
    seen = with_listed(s[~s.video.eq('000')], listed)
    assert seen.status.eq('missing').sum() == 1 and coverage(seen) == pytest.approx(21/24) and seen.score.isna().sum() == 7
    with pytest.raises(HffError, match='not listed'): with_listed(s, listed[:-1])


@pytest.mark.parametrize('path,want', [
    ('a/manipulated_sequences/Face2Face/c40/frames/000_003/012.png', ('ffpp', 'F2F', 'c40', '000_003', '012', 1)),
    ('a/manipulated_sequences/FaceShifter/raw/images/000_003/0012.jpg', ('ffpp', 'FSh', 'raw', '000_003', '0012', 1)),
    ('manipulated_sequences\\DeepFakeDetection\\c23\\frames\\01_02__hugging_happy__YVGY8LOK\\3.png',
     ('dfd', 'DFD', 'c23', '01_02__hugging_happy__YVGY8LOK', '3', 1)),
    ('x/original_sequences/actors/c23/frames/01__kitchen_still/3.png', ('dfd', 'real', 'c23', '01__kitchen_still', '3', 0)),
    ('Celeb-DF-v1/Celeb-real/frames/id0_0000/000.png', ('celebdf_v1', 'real', '', 'id0_0000', '000', 0)),
    ('Celeb-synthesis/videos/id0_id1_0000/000.png', ('', 'CDF', '', 'id0_id1_0000', '000', 1)),
    ('DFDCP/method_B/frames/1_2_A_003/9.png', ('dfdcp', 'method_B', '', '1_2_A_003', '9', 1)),
    ('DeeperForensics-1.0/manipulated_videos/end_to_end/frames/000_M101/9.png', ('df1', 'end_to_end', '', '000_M101', '9', 1)),
    ('rgb/UADFV/real/frames/0000/9.png', ('uadfv', 'real', '', '0000', '9', 0)),
])
def test_known_paths(path, want):
    assert tuple(path_identity(pd.Series([path])).iloc[0]) == want
