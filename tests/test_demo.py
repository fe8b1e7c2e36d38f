"The demo in a real browser: Voila serves it, headless Chromium presses its buttons"
import base64, json, os, shutil, socket, subprocess, sys, time, urllib.request
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
CHROMIUM = next(filter(None, map(shutil.which, ('chromium', 'chromium-browser', 'google-chrome'))), None)


def free_port():
    with socket.socket() as s: s.bind(('127.0.0.1', 0)); return s.getsockname()[1]


def until(what, seconds, why):
    "Ask again and again"
    end = time.time()+seconds
    while time.time()<end:
        try:
            if got := what(): return got
        except OSError: pass
        time.sleep(.5)
    raise AssertionError(why())


class Page:
    "A tab of a browser, by its debugging protocol"
    def __init__(self, port):
        import websocket
        tabs = until(lambda: json.load(urllib.request.urlopen(f'http://127.0.0.1:{port}/json')), 60, lambda: 'the browser does not answer')
        self.ws, self.n = websocket.create_connection(next(t for t in tabs if t['type']=='page')['webSocketDebuggerUrl'], timeout=60, suppress_origin=True), 0
        self.seen = []

    def call(self, method, **params):
        self.n += 1
        self.ws.send(json.dumps(dict(id=self.n, method=method, params=params)))
        while (m := json.loads(self.ws.recv())).get('id')!=self.n: self.seen.append(m)
        assert 'error' not in m, m
        return m['result']

    def event(self, method):
        "What the browser tells by itself"
        while True:
            for m in self.seen:
                if m.get('method')==method: return m['params']
            self.seen.append(json.loads(self.ws.recv()))

    def click(self, code):
        "The mouse on an element that an expression finds"
        x, y = self.js(f"(() => {{ const r = ({code}).getBoundingClientRect(); return [r.x+r.width/2, r.y+r.height/2]; }})()")
        for kind in ('mousePressed', 'mouseReleased'): self.call('Input.dispatchMouseEvent', type=kind, x=x, y=y, button='left', clickCount=1)

    def js(self, code): return self.call('Runtime.evaluate', expression=code, returnByValue=True)['result'].get('value')

    def text(self): return self.js('document.body ? document.body.innerText : ""') or ''

    def shot(self, path): Path(path).write_bytes(base64.b64decode(self.call('Page.captureScreenshot', captureBeyondViewport=True)['data']))


@pytest.fixture(scope='module')
def page(tmp_path_factory):
    pytest.importorskip('voila'); pytest.importorskip('websocket')
    if not CHROMIUM: pytest.skip('no Chromium on this machine')
    d, a, b = tmp_path_factory.mktemp('browser'), free_port(), free_port()
    env = os.environ | dict(PYTHONPATH=str(ROOT), TQDM_DISABLE='1', JUPYTER_PREFER_ENV_PATH='1', HFF_DATA=str(d/'data'))
    logs = open(d/'voila.log', 'wb'), open(d/'chromium.log', 'wb')
    voila = subprocess.Popen([sys.executable, '-m', 'voila', str(ROOT/'nbs/demo.ipynb'), '--no-browser', f'--port={a}', '--Voila.ip=127.0.0.1'], env=env, stdout=logs[0], stderr=subprocess.STDOUT)
    chromium = None
    try:
        until(lambda: socket.create_connection(('127.0.0.1', a), 1), 120, lambda: (d/'voila.log').read_text()[-2000:]).close()
        chromium = subprocess.Popen([CHROMIUM, '--headless=new', '--no-sandbox', '--disable-gpu', '--disable-dev-shm-usage', f'--user-data-dir={d/"profile"}', f'--remote-debugging-port={b}',
                                     '--window-size=1200,1300', f'http://127.0.0.1:{a}/'], stdout=logs[1], stderr=subprocess.STDOUT)
        p = Page(b)
        until(lambda: 'Look at' in p.text(), 180, lambda: p.text()[-500:] + (d/'voila.log').read_text()[-2000:])
        yield p, d
        p.ws.close()
    finally:
        for proc in (chromium, voila):
            if proc: proc.terminate(); proc.wait(30)
        for f in logs: f.close()


def press(p): p.js("[...document.querySelectorAll('button')].find(b => b.innerText.trim()=='Look').click()")


def choose(p, n): p.js(f"(() => {{ const s = document.querySelector('select'); s.selectedIndex = {n}; s.dispatchEvent(new Event('change', {{bubbles: true}})); }})()")


def shown(p): return p.js("(() => { const i = document.querySelector('img.widget-image, .widget-image'); return i && i.offsetWidth>0 ? [i.naturalWidth, i.src.length] : null; })()")


def test_an_example_is_looked_at(page):
    p, d = page
    assert 'not a detector of real deepfakes' in p.text()
    choose(p, 1); press(p)
    until(lambda: 'p(fake)' in p.text() and 'frames that were looked at' in p.text(), 180, lambda: p.text()[-800:])
    width, _ = until(lambda: shown(p), 20, lambda: 'no picture')
    p.shot(d/'face_swap.png')
    assert width>600 and (d/'face_swap.png').stat().st_size>50_000
    if out := os.environ.get('HFF_SHOTS'): shutil.copy(d/'face_swap.png', out)


def test_nothing_uploaded_is_said_in_words(page):
    p, d = page
    choose(p, 3); press(p)
    until(lambda: 'Nothing was uploaded' in p.text(), 60, lambda: p.text()[-500:])
    assert shown(p) is None


def test_a_picture_without_a_face_is_said_in_words(page, tmp_path):
    import cv2, numpy as np
    p, d = page
    cv2.imwrite(str(tmp_path/'wall.png'), np.full((120, 160, 3), 127, np.uint8))
    p.call('Page.enable'); p.call('Page.setInterceptFileChooserDialog', enabled=True)
    p.click("[...document.querySelectorAll('button')].find(b => b.innerText.includes('Upload'))")
    p.call('DOM.setFileInputFiles', backendNodeId=p.event('Page.fileChooserOpened')['backendNodeId'], files=[str(tmp_path/'wall.png')])
    until(lambda: '(1)' in p.text(), 60, lambda: p.text()[-500:])            # the button counts what was chosen
    press(p)
    until(lambda: 'no face was scored' in p.text(), 90, lambda: p.text()[-500:])
    if out := os.environ.get('HFF_SHOTS'): p.shot(Path(out)/'no_face.png')
