"Rendered people: same bytes in another process, landmarks inside the frame, a face where the mask says so"
import hashlib, subprocess, sys

import numpy as np

from hff.miniff.heads import State, make_clip, make_person, render
from hff.miniff.raster import rasterize

code = ("import hashlib; from hff.miniff.heads import make_clip; c = make_clip(5, 2, 96); "
        "print(hashlib.sha256(c.frames.tobytes()+c.landmarks.tobytes()+c.visible.tobytes()).hexdigest())")

def test_same_bytes_in_another_process():
    c = make_clip(5, 2, 96)
    here = hashlib.sha256(c.frames.tobytes()+c.landmarks.tobytes()+c.visible.tobytes()).hexdigest()
    there = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True).stdout.strip()
    assert here==there

def test_mask_and_landmarks():
    r = render(make_person(8), State(), 96)
    inside = np.rint(r.landmarks[[1, 4, 9]]).astype(int)
    assert (r.visible[inside[:,1],inside[:,0]]==255).all() and r.visible[:,0].max()==0
    assert r.landmarks.min()>0 and r.landmarks.max()<95

def test_other_person_other_picture():
    a, b = make_clip(1, 1, 96), make_clip(2, 1, 96)
    assert np.abs(a.frames.astype(int)-b.frames).mean()>5

def test_nearest_triangle_wins():
    xy = np.array([[0, 0], [9, 0], [0, 9.]]*2); z = np.array([2, 2, 2, 1, 1, 1.])
    index, _ = rasterize(xy, z, np.arange(6).reshape(2, 3), 10)
    assert set(np.unique(index))=={-1, 1}
