"The documentation site: built once from all notebooks, then read as a visitor's browser would"
import importlib, importlib.util, inspect, json, os, re, subprocess, sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import nbformat
import pytest

ROOT = Path(__file__).parent.parent
NBS = [*ROOT.glob('nbs/[0-9]*.ipynb'), *ROOT.glob('nbs/paper/[!_]*.ipynb')]


class Page(HTMLParser):
    "Ids, links (in the text and around it), what is loaded, and words of a page"
    def __init__(self, p):
        super().__init__()
        self.ids, self.links, self.loads, self.words, self.article, self.inside = set(), [], [], [], [], False
        self.feed(p.read_text(encoding='utf-8'))

    def handle_starttag(self, tag, attrs):
        a = dict(attrs)
        self.ids.add(a.get('id'))
        self.inside |= tag=='article'
        if tag=='a' and 'href' in a: (self.article if self.inside else self.links).append(a['href'])
        if 'src' in a: self.loads.append(a['src'])
        if tag=='link' and a.get('rel') in ('stylesheet', 'icon'): self.loads.append(a['href'])

    def handle_endtag(self, tag): self.inside &= tag!='article'

    def handle_data(self, data): self.words.append(data)


@pytest.fixture(scope='session')
def docs():
    spec = importlib.util.spec_from_file_location('docs', ROOT/'.ci/docs.py')
    mod = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(mod)
    return mod


@pytest.fixture(scope='session')
def site(tmp_path_factory):
    "folder and its pages by relative name"
    out = tmp_path_factory.mktemp('site')/'_site'
    r = subprocess.run([sys.executable, ROOT/'.ci/docs.py', out], cwd=out.parent, env={**os.environ, 'OMP_NUM_THREADS': '1'}, capture_output=True, text=True)
    assert r.returncode==0, r.stdout[-2000:] + r.stderr[-4000:]
    assert 'docs:' not in r.stderr
    return out, {p.relative_to(out).as_posix(): Page(p) for p in out.rglob('*.html')}


@pytest.fixture(scope='session')
def index(site): return json.loads((site[0]/'search/search_index.json').read_text())['docs']


def test_each_notebook_has_a_page(site):
    out, pages = site
    for p in NBS:
        page = pages[f'{"paper" if p.parent.name=="paper" else "notebooks"}/{p.stem}.html']
        title = nbformat.read(p, 4).cells[0].source.splitlines()[0].removeprefix('# ')
        assert title in ' '.join(page.words), p.stem
        stored = sum(any(k.startswith('image/') for k in o.get('data', {})) for c in nbformat.read(p, 4).cells for o in c.get('outputs', []))
        assert sum(p.stem in s for s in page.loads)==stored, f'{p.stem}: pictures are missing'


def test_reading_order(site):
    "Home leads to the contents, and the contents list every notebook in order"
    out, pages = site
    listed = [l for l in pages['contents.html'].article if l.startswith('notebooks/')]
    assert 'contents.html' in pages['index.html'].links
    assert listed==[f'notebooks/{p.stem}.html' for p in sorted(ROOT.glob('nbs/[0-9]*.ipynb'))]


def test_tables_are_sorted_by_number(docs):
    names = ['summary', 'table10_x', 'table2_y', 'table1_z', 'fidelity']
    assert [p.stem for p in sorted(map(Path, names), key=docs.natural)]==['table1_z', 'table2_y', 'table10_x', 'fidelity', 'summary']


def test_api_has_every_public_name(site):
    out, pages = site
    for p in (ROOT/'hff').rglob('*.py'):
        if p.name.startswith('_'): continue
        name = '.'.join(p.relative_to(ROOT).with_suffix('').parts)
        mod = importlib.import_module(name)
        missing = {n for n in mod.__all__ if not inspect.ismodule(getattr(mod, n))}-pages[f'api/{name}.html'].ids
        assert not missing, f'{name}: {missing}'
    assert '<factory>' in ''.join(pages['api/hff.recipe.html'].words)
    words = ' '.join(' '.join(pages['api/hff.filters.html'].words).split())
    assert 'srm_residual' in words and 'truncation, in the unit of' in words and 'noise residual, (B, 3, H, W), within' in words


def test_internal_links_lead_somewhere(site):
    out, pages = site
    for name, page in pages.items():
        for link in page.links+page.article+page.loads:
            u = urlsplit(link)
            if u.scheme or u.netloc or link.startswith(('data:', '/')): continue            # 404.html alone starts with /
            target = (out/name).parent/unquote(u.path) if u.path else out/name
            assert target.is_file() or (target/'index.html').is_file(), f'{name}: {link}'
            rel = os.path.relpath(target, out)
            if u.fragment and rel in pages: assert unquote(u.fragment) in pages[rel].ids, f'{name}: {link}'


def test_nothing_is_fetched(site):
    out, pages = site
    for name, page in pages.items(): assert not [s for s in page.loads if re.match(r'(https?:)?//', s)], name
    for p in out.rglob('*.css'): assert not re.search(r'url\(["\']?(https?:)?//|@import', p.read_text()), p.name


def test_no_machine_paths(site):
    out, pages = site
    for name in [*pages, 'search/search_index.json']:
        text = (out/name).read_text(encoding='utf-8')
        assert not [p for p in (ROOT, out.parent, sys.prefix, Path.home()) if f'{p}/' in text], name
        assert not (m := re.search(r'/tmp/(?:tmp|pytest)|site-packages/', text)), f'{name}: {m}'


def test_search_finds_code_prose_and_outputs(site, index):
    out, pages = site
    for word, page in {'srm_residual': 'api/hff.filters.html', 'steganalysis': 'notebooks/10_filters.html', 'cross-manipulation': 'index.html', 'Face X-ray': 'notebooks/60_report.html'}.items():
        assert any(word in d['title']+d['text'] and d['location'].startswith(page) for d in index), word
    for d in index: assert d['location'].split('#')[0] in pages, d['location']
    assert (out/'search/search_index.js').is_file() and (out/'iframe-worker.js').is_file()       # search from a folder


def test_formulas_are_set(site, docs):
    out, pages = site
    text = (out/'notebooks/10_filters.html').read_text()
    assert text.count('<math')>20 and r'\begin' not in text and '<mtable' in text
    for p in out.glob('notebooks/*.html'): assert not re.search(r'class="arithmatex">\\[(\[]', p.read_text()), p.name
    assert 'ℒ' in docs.mathml(r'\mathcal L=1', 'block') and 'arg' in docs.mathml(r'\arg\min_x', 'inline')
    with pytest.raises(SystemExit, match='nosuch'): docs.mathml(r'\nosuch{x}', 'inline')


def test_names_become_links_outside_code(docs):
    link = docs.Linker([], {})
    link.to = {'video_auc': 'api/hff.metrics.md#video_auc', 'nbs/42_metrics.ipynb': 'notebooks/42_metrics.md'}
    text = '# `video_auc`\n\nsee `video_auc()` and `nbs/42_metrics.ipynb`, `other`\n\n```python\n`video_auc`\n```\n[`video_auc`](x)'
    new = link(text, 'notebooks/41_scores.md')
    assert new.count('../api/hff.metrics.md#video_auc')==1 and new.count('../notebooks/42_metrics.md')==1
    assert new.startswith('# `video_auc`\n') and '```python\n`video_auc`\n```\n[`video_auc`](x)' in new and '`other`' in new


def test_a_fence_holds_fences(docs):
    assert docs.fence('a\n```\nb', 'text')=='````text\na\n```\nb\n````'


def test_a_folder_of_others_is_left_alone(docs, tmp_path):
    (tmp_path/'mine').mkdir()
    (tmp_path/'mine/thesis.txt').touch()
    with pytest.raises(SystemExit, match='name another folder'): docs.main(tmp_path/'mine')
    assert (tmp_path/'mine/thesis.txt').is_file()
