"What people do to a command line, and what it must not do to them"
import os
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml

import trees
from hff.cli import main
from hff.extract import extract_faces, read_faces
from hff.manifest import check_manifest
from hff.paths import HffError, sha256, write_json
from hff.readers import read_source
from hff.scores import check_scores
from hff.video import write_video
from test_defects import scores
from test_extract import clips, manifest, pan, portrait  # noqa: F401  (a fixture among them)


def hff(*args):
    with warnings.catch_warnings():
        warnings.simplefilter('default')
        return main([str(a) for a in args])


def one_line(capsys, *words):
    err = capsys.readouterr().err.strip().splitlines()
    assert len(err)==1 and err[0].startswith('hff: ') and all(w in err[0] for w in words), err


def test_a_folder_with_other_files_is_left_alone(clips, tmp_path):  # noqa: F811
    (tmp_path/'mine/parts').mkdir(parents=True); (tmp_path/'mine/parts/thesis.txt').write_text('x')
    with pytest.raises(HffError, match='holds other files'): extract_faces(manifest(['0.mp4']), clips, tmp_path/'mine', frames=1, size=64)
    with pytest.raises(HffError, match='data set itself'): extract_faces(manifest(['0.mp4']), clips, clips, frames=1, size=64)
    (tmp_path/'file').touch()
    with pytest.raises(HffError, match='is a file'): extract_faces(manifest(['0.mp4']), clips, tmp_path/'file', frames=1, size=64)
    assert (tmp_path/'mine/parts/thesis.txt').read_text()=='x'


def test_what_is_read_is_not_written_over(tmp_path, capsys):
    (table := tmp_path/'theirs.csv').write_text('path,label,score\na/frames/1/2.png,1,.5\n')
    (picture := tmp_path/'face.jpg').write_bytes((trees.PORTRAITS/'male_20.jpg').read_bytes())
    for args in (['scores', 'import', table, '--fake', 1, '--out', table], ['predict', picture, '--csv', picture], ['predict', picture, '--json', tmp_path/'x.txt']):
        before = {p: p.read_bytes() for p in (table, picture)}
        assert hff(*args)==1
        one_line(capsys, 'ends in')
        assert before=={p: p.read_bytes() for p in before}


def test_turned_labels_are_noticed():
    m = manifest(['a.mp4', 'b.mp4'])
    with pytest.raises(HffError, match='turned round'): check_manifest(m.assign(label=1))
    s = scores(methods=('DF',))
    with pytest.raises(HffError, match='turned round'): check_scores(s.assign(label=1-s.label))


@pytest.mark.parametrize('name,file,text', [('celebdf_v2', 'List_of_testing_videos.txt', ''), ('dfdc', 'test/labels.csv', 'filename,label\n'), ('ffpp', 'train.json', '[]'),
                                            ('df1', 'lists/splits/val.txt', '\n'), ('ffpp', 'train.json', '5'), ('ffpp', 'train.json', '[5]'),
                                            ('dfdc', 'train/dfdc_train_part_0/metadata.json', '{"abcdefghij.mp4": {"label": ["FAKE"]}}'),
                                            ('dfdc', 'train/dfdc_train_part_0/metadata.json', '{"abcdefghij.mp4": {"label": "FAKE", "original": 5}}')])
def test_lists_that_say_nothing_or_nonsense(name, file, text, tmp_path):
    "An emptied list would turn test clips into training clips"
    t = trees.make_tree(name, tmp_path)
    p = next(q for q in t['root'].rglob(Path(file).name) if q.as_posix().endswith(file))
    p.write_text(text)
    with pytest.raises(HffError, match=p.name): read_source(name, t['root'], **t['options'])


def test_a_link_that_leads_in_a_circle_costs_one_row(tmp_path):
    t = trees.make_tree('ffpp', tmp_path)
    clip = next(t['root'].rglob('Deepfakes/c23/videos/*.mp4'))
    clip.unlink(); clip.symlink_to(clip)
    m = read_source('ffpp', t['root'])
    assert m[m.path.eq(clip.relative_to(t['root']).as_posix())].status.tolist()==['missing'] and m.status.eq('missing').sum()==1


def test_a_picture_called_a_video_is_no_clip(tmp_path):
    (tmp_path/'a.mp4').write_bytes((trees.PORTRAITS/'male_20.jpg').read_bytes())
    t = read_faces(extract_faces(manifest(['a.mp4']), tmp_path, tmp_path/'faces', frames=1, size=64, jobs=1))
    assert t[['status', 'reason']].values.tolist()==[['error', 'a picture, not a video']]


def test_the_wrong_root_does_not_pass(clips, tmp_path, capsys, monkeypatch):  # noqa: F811
    monkeypatch.setenv('TQDM_DISABLE', '1')
    manifest(['nothing.mp4']).to_parquet(tmp_path/'m.parquet')
    assert hff('faces', tmp_path/'m.parquet', '--root', clips, '--preset', 'smoke', '--out', tmp_path/'faces')==1
    one_line(capsys, 'is --root')


def test_two_processes_do_not_spoil_each_other(clips, tmp_path):  # noqa: F811
    m, code = manifest(sorted(p.name for p in clips.iterdir())), []
    m.to_parquet(tmp_path/'m.parquet')
    script = 'import sys, pandas as pd; from hff.extract import extract_faces; from hff.paths import HffError\ntry: extract_faces(pd.read_parquet(sys.argv[1]), *sys.argv[2:4], frames=4, size=64, jobs=1)\nexcept HffError as e: sys.exit(str(e))'
    ps = [subprocess.Popen([sys.executable, '-c', script, tmp_path/'m.parquet', clips, tmp_path/'faces'], stderr=subprocess.PIPE, text=True, env=os.environ | dict(TQDM_DISABLE='1')) for _ in range(2)]
    said = [p.communicate()[1] for p in ps]
    assert sorted(p.returncode for p in ps) in ([0, 0], [0, 1]) and not any('Traceback' in s for s in said)
    assert all('in use by another process' in s for p, s in zip(ps, said) if p.returncode)
    assert read_faces(tmp_path/'faces').status.eq('ok').all() and sha256(tmp_path/'faces')==sha256(extract_faces(m, clips, tmp_path/'alone', frames=4, size=64, jobs=1))


def test_a_full_disk_is_one_error_and_nothing_half_written(clips, tmp_path, monkeypatch):  # noqa: F811
    "The landmarks are written as an ordinary file, so a full disk is an error and not a signal"
    import hff.extract
    class Full:
        def __init__(self, f): self.f = f
        def write(self, b):
            if len(b)>4000: raise OSError(28, 'No space left on device')
            return self.f.write(b)
        def close(self): self.f.close()
    monkeypatch.setattr(hff.extract, 'open', lambda p, mode: Full(open(p, mode)) if mode=='wb' else open(p, mode), raising=False)
    with pytest.raises(HffError, match='No space left'): extract_faces(manifest(['0.mp4']), clips, tmp_path/'faces', frames=4, size=64, jobs=1)
    assert not list((tmp_path/'faces').glob('*.npy')) and not list((tmp_path/'faces').glob('.*.tmp*')) and not (tmp_path/'faces/faces.parquet').exists()
    monkeypatch.undo()
    assert read_faces(extract_faces(manifest(['0.mp4']), clips, tmp_path/'faces', frames=4, size=64, jobs=1)).status.eq('ok').all()


def test_interruption_says_that_work_is_kept(capsys, monkeypatch):
    def stop(*a, **k): raise KeyboardInterrupt
    monkeypatch.setattr('hff.info.source_info', stop)
    assert hff('data', 'info', 'ffpp')==130
    one_line(capsys, 'interrupted')


@pytest.mark.parametrize('args,words', [
    (['predict', ''], 'empty'), (['predict', 'x'*300+'.mp4'], 'x'*200), (['evaluate', 'README.md'], 'parquet'), (['train', '--seed', '-1'], 'seed'), (['miniff', 'build', '--seed', '-1'], 'seed -1'), (['miniff', 'build', '--set', 'dfd', '--seed', '-1'], 'seed -1'),
    (['evaluate', '{s}', '--split', 'val'], '--faces'), (['evaluate', '{s}', '--scores-out', 'q.parquet'], '--faces'), (['evaluate', '{s}', '--temperature'], 'val_scores'),
    (['evaluate', '{s}', '--out', '{s}'], 'ends in .csv'), (['scores', 'compare', '{s}', '{s}'], 'named twice'), (['scores', 'import', 'a.csv', '--out', 'b.parquet'], '--fake'),
    (['faces', '{m}', '--root', '{d}', '--detector', 'os:getcwd', '--out', '{d}/f'], 'os:getcwd'),
    (['train', '--set', 'epochs'], 'name=value'), (['train', '--set', 'seed=1'], '--seed'), (['train', '--set', 'epoch=1'], 'unknown epoch'), (['train', '--set', 'epochs=two'], 'epochs'),
    (['train', '--faces', '{d}', '--set', 'image_size=64'], 'hff faces --size')])
def test_one_line_for_each_mistake(args, words, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv('TQDM_DISABLE', '1')
    scores(methods=('DF',)).to_parquet(tmp_path/'s.parquet')
    manifest(['a.mp4']).to_parquet(tmp_path/'m.parquet')
    assert hff(*(a.format(s=tmp_path/'s.parquet', m=tmp_path/'m.parquet', d=tmp_path) for a in args)) in (1, 2)
    one_line(capsys, words)


@pytest.mark.parametrize('section,value,word', [
    ('crop', [1], '`crop`'), ('crop', {1: 2}, '`crop`'), ('miniff', 5, '`miniff`'), ('miniff', 0, '`miniff`'), ('miniff', ['people'], '`miniff`'), ('standins', 5, '`standins`'),
    ('miniff', dict(people=5), 'people=5'), ('miniff', dict(people=[2., 2, 2]), 'people='), ('miniff', dict(people=None), 'people='), ('miniff', dict(frames='8'), "frames='8'"),
    ('miniff', dict(size=[192]), 'size='), ('miniff', dict(textures_steps='4'), 'textures_steps'), ('miniff', dict(deepfakes_steps=0), 'at least 2'), ('miniff', dict(qualities=[[1]]), 'qualities='),
    ('standins', dict(people='6'), "people='6'"), ('standins', dict(steps=[1]), 'steps='), ('standins', dict(steps=0), 'at least 1'), ('standins', dict(size=None), 'size='),
    ('recipe', dict(epochs='3'), "epochs='3'"), ('recipe', dict(epochs=None), 'epochs=None')])
def test_sections_of_a_preset_hold_what_they_should(section, value, word, tmp_path, capsys):
    (tmp_path/'p.yaml').write_text(yaml.safe_dump(dict(recipe={}, miniff={}) | {section: value}))
    manifest(['a.mp4']).to_parquet(tmp_path/'m.parquet')
    commands = dict(crop=['faces', tmp_path/'m.parquet', '--root', tmp_path], miniff=['miniff', 'build'], standins=['miniff', 'build', '--set', 'dfd'], recipe=['reproduce', '--dry-run'])
    assert hff(*commands[section], '--preset', tmp_path/'p.yaml', '--out', tmp_path/'out')==1
    one_line(capsys, word)
    assert not (tmp_path/'out').exists()


@pytest.mark.parametrize('about', [{}, [], 5, dict(asked={}), dict(asked=[], files={}), dict(asked={}, files=['a']), dict(asked={}, files=dict(a=5)),
                                   dict(asked={}, files={'../there': 'x'}), dict(asked={}, files={'/there': 'x'})])
def test_a_miniff_from_elsewhere_is_not_believed(about, tmp_path, capsys, monkeypatch):
    "Neither by verify, nor by a build that finds it, nor by a stand-in that borrows from it; no file outside is read"
    (tmp_path/'there').write_text('x'); write_json(about, tmp_path/'mini/miniff.json')
    seen = []
    monkeypatch.setattr('hff.miniff.build.sha256', lambda p: seen.append(p) or 'x')
    for command in (['verify', tmp_path/'mini'], ['build', '--preset', 'smoke', '--out', tmp_path/'mini'],
                    ['build', '--preset', 'smoke', '--set', 'df1', '--ffpp-root', tmp_path/'mini', '--out', tmp_path/'df1']):
        assert hff('miniff', *command)==1
        one_line(capsys, 'miniff.json')
    assert not seen


TWO = [['004', '005'], ['006', '007']]

@pytest.mark.parametrize('asked,test', [(dict(seed='0'), TWO), (dict(seed=-1), TWO), (dict(settings=5), TWO), (dict(settings=dict(frames=2)), TWO), (dict(settings=dict(frames=0, size=96)), TWO),
                                        ({}, [['004', 'x'], ['006', '007']]), ({}, 5), ({}, [['000', '005'], ['006', '007']])])
def test_nobody_is_borrowed_from_nonsense(asked, test, tmp_path, capsys):
    write_json(dict(asked=dict(faces='rendered', seed=0, settings=dict(frames=2, size=96)) | asked, files={}), tmp_path/'mini/miniff.json')
    for split, pairs in dict(train=[['000', '001']], val=[['002', '003']], test=test).items(): write_json(pairs, tmp_path/f'mini/splits/{split}.json')
    assert hff('miniff', 'build', '--preset', 'smoke', '--set', 'df1', '--ffpp-root', tmp_path/'mini', '--out', tmp_path/'df1')==1
    one_line(capsys, 'mini')


def test_names_of_two_hundred_and_fifty_bytes(tmp_path, capsys, monkeypatch):
    "Through prediction and its overlays"
    monkeypatch.setenv('TQDM_DISABLE', '1')
    (tmp_path/'in').mkdir()
    write_video(tmp_path/'c.mp4', pan(portrait('male_20', 128), 2)).rename(tmp_path/'in'/f"{'ü'*123}.mp4")
    (tmp_path/'in'/f"{'y'*251}.jpg").write_bytes((trees.PORTRAITS/'male_20.jpg').read_bytes())
    assert hff('predict', tmp_path/'in', '--overlay', tmp_path/'out', '--heat', 'none')==0
    assert len(list((tmp_path/'out').glob('*.mp4')))==1 and len(list((tmp_path/'out').glob('*.png')))==2


def test_frames_of_pooled_videos_survive_a_round_trip(tmp_path):
    from hff.exchange import export_videos, import_videos, video_file
    s = scores(methods=('DF',), frames=6)
    export_videos(s, tmp_path/'a.scores.csv', 'mean', 'toy', 'test')
    again = video_file(import_videos(tmp_path/'a.scores.csv'), 'mean')
    assert again.n_frames.eq(6).all() and np.allclose(again.score, video_file(s, 'mean').score)
