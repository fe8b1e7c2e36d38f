"The page of a run: sound HTML, nothing missing, nothing believed that it was given"
import os, re, shutil
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import pandas as pd
import pytest

from hff.page import duration, files_of, heading, index_page, machine_facts, table_html

ROOT = Path(__file__).parent.parent
FACTS = dict(command='hff reproduce --preset mini', preset='mini', seeds=(0, 1), runs=21, machine=dict(cores=2, processor='<cpu> & co'), times=dict(training=2140.4, faces=88))
VOID = {'meta', 'img', 'br', 'link', 'hr', 'input'}


class Balanced(HTMLParser):
    "Fails at the first tag that does not close; keeps links, pictures, ids and words"
    def __init__(self, text):
        super().__init__()
        self.open, self.links, self.images, self.ids, self.words = [], [], [], [], []
        self.feed(text)
        self.close()
        assert not self.open, f'left open: {self.open}'

    def handle_starttag(self, tag, attrs):
        a = dict(attrs)
        if tag not in VOID: self.open.append(tag)
        if tag=='img': self.images.append((a['src'], a['alt']))
        if tag=='a': self.links.append(a['href'])
        if 'id' in a: self.ids.append(a['id'])

    def handle_endtag(self, tag): assert self.open.pop()==tag, f'</{tag}> closes another tag'

    def handle_data(self, data): self.words.append(data)


def section(stem, ok=True, **kw): return dict(stem=stem, title=stem.capitalize(), promise=f'What {stem} is for', ok=ok, error='', seconds=5) | kw


@pytest.fixture()
def run(tmp_path):
    "Two tables of the committed run beside names made to confuse"
    out = tmp_path/'run'
    out.mkdir()
    for p in (ROOT/'figures/mini').glob('table[34]*'): shutil.copy(p, out)
    shutil.copy(out/'table3.png', out/'table30_odd name & <b>.png')
    for s in ('svg', 'pdf'): (out/f'table3.{s}').write_text('x')
    (out/'table30_empty.csv').touch()
    pd.DataFrame({'<i>name</i>': ['<script>alert(1)</script>', 'a & b'], 'auc': [.91249, None]}).to_csv(out/'table30_names.csv', index=False)
    return out


SECTIONS = [section('table3'), section('table30'), section('table4', ok=False, error='HffError: no <run> & no scores'), section('table5', seconds=None)]


def page_of(out, sections=SECTIONS, facts=FACTS, title='A run <of> all'):
    text = index_page(out, sections, facts, title).read_text(encoding='utf-8')
    return text, Balanced(text)


def part(text, stem): return text[text.index(f'<section id="{stem}">'):].split('</section>')[0]


def test_page_is_sound(run):
    text, page = page_of(run)
    assert text.startswith('<!doctype html>') and 'name="viewport"' in text and len(page.ids)==len(set(page.ids))
    for src, alt in page.images: assert (run/unquote(src)).is_file() and alt.strip()
    for link in page.links: assert unquote(link[1:]) in page.ids if link[0]=='#' else (run/unquote(link)).is_file(), link
    assert {p.name for p in run.glob('*.png')}=={unquote(s) for s, _ in page.images}
    assert not re.search(r'<script|https?:|//cdn|@import|<link', text)                    # no script, no network


def test_order_and_ownership(run):
    text, page = page_of(run)
    at = [text.index(f'<section id="{s}">') for s in ('facts', 'table3', 'table30', 'table4', 'table5')]
    assert at==sorted(at) and text.index('Contents')<at[0]
    assert 'table30' not in part(text, 'table3') and 'href="table3.svg"' in part(text, 'table3') and 'href="table3.pdf"' in part(text, 'table3')
    assert 'table4_samples.png' in part(text, 'table4') and 'No table and no picture' in part(text, 'table5')
    (run/'stray.csv').write_text('x\n1\n')
    assert 'stray.csv' in part(page_of(run)[0], 'others')


def test_names_are_escaped(run):
    text, page = page_of(run)
    words = ''.join(page.words)
    for raw in ('A run <of> all', '<script>alert(1)</script>', '<i>name</i>', 'no <run> & no scores', '<cpu> & co', 'table30 odd name & <b>'): assert raw in words, raw
    assert '<script' not in text and '<i>' not in text and '<b>' not in text
    with_quotes = page_of(run, [section('table3', title='"Table" \'3\'')])[1]
    assert any('"Table" \'3\'' in alt for _, alt in with_quotes.images)


def test_names_that_are_no_utf8(run):
    for n in (b'table3_\xe9.png', b'table30_\xe9.csv', b'stray_\xe9.csv', b'other_\xe9.pdf'): Path(os.fsdecode(os.fsencode(run)+b'/'+n)).write_text('a\n1\n')
    text, page = page_of(run)
    assert 'href="table3_%E9.png"' in text and 'src="table3_%E9.png"' in text and 'table30_%E9.csv' in text and 'stray_?.csv' in page.words


def test_failures_are_shown(run):
    text, _ = page_of(run)
    assert '✗ failed: HffError: no &lt;run&gt; &amp; no scores' in part(text, 'table4') and 'earlier run' in part(text, 'table4')
    assert text.count('✓ done')==3 and text.count('✗ failed</td>')==1
    (run/'table30_gone.csv').symlink_to(run/'nowhere')
    text, _ = page_of(run)
    assert str(run) not in text and part(text, 'table30').count('cannot be read')==2 and '✗ failed' not in part(text, 'table30')


def test_same_input_same_bytes(run):
    a = page_of(run)[0]
    assert a==page_of(run)[0]
    copy = run.parent/'elsewhere'
    shutil.copytree(run, copy)
    (copy/'index.html').unlink()
    assert page_of(copy)[0]==a and str(run) not in a and 'tmp' not in a


def test_verdicts_are_read_without_colour(run):
    text, _ = page_of(run)
    four, both = pd.read_csv(run/'table4_claims.csv').verdict, pd.concat([pd.read_csv(run/f'table{i}_claims.csv') for i in (3, 4)]).verdict
    claims = part(text, 'table4')
    assert f'<details open><summary>table4 claims, {len(four)} rows' in claims and len(four)>5
    for sign, word in (('✓', 'holds'), ('✗', 'does not hold'), ('?', 'cannot be told')): assert claims.count(f'{sign} {word}')==four.eq(word).sum(), word
    assert re.search(r'<summary>table4, 48 rows', claims) and '<details open><summary>table4, 48' not in claims
    n = {w: both.eq(w).sum() for w in ('holds', 'does not hold', 'cannot be told')}
    assert f"Claims judged: {sum(n.values())} ({n['holds']} ✓ holds, {n['does not hold']} ✗ does not hold, {n['cannot be told']} ? cannot be told)" in text


def test_summary_stands_on_top(run):
    (run/'summary_claims.csv').write_text('claim,a,verdict\nFirst,0.5,does not hold\nSecond,0.5,holds\n')
    text, _ = page_of(run, [*SECTIONS, section('summary')])
    assert text.index('summary claims, 2 rows')<text.index('Contents') and text.count('summary claims, 2 rows')==1
    assert 'Claims judged: 2 (1 ✓ holds, 1 ✗ does not hold' in text
    assert text.count('summary claims, 2 rows')==1==page_of(run)[0].count('summary claims, 2 rows')      # also without that notebook


def test_numbers():
    t = pd.DataFrame(dict(auc=[.12345, 1., None], n=[64., None, 32.], p=[.00001, .0004999, .5], negative=[-.0001, -.5, .0], yes=[True, False, True]))
    cells = re.findall('<td[^>]*>([^<]*)</td>', table_html(t))
    assert cells==['0.123', '64', '&lt;0.001', '0.000', 'yes', '1.000', '–', '&lt;0.001', '-0.500', 'no', '–', '32', '0.500', '0.000', 'yes']


def test_nothing_to_show(tmp_path):
    text, page = page_of(tmp_path/'new', [], {}, 'Nothing')
    assert 'No claims were judged' in text and not page.images
    text, _ = page_of(tmp_path/'new', [dict(stem='table1', ok=False)], {}, 'Bare')
    assert 'table1' in text and 'no reason was given' in text
    assert files_of(tmp_path/'none', ['a'])=={'a': [], '': []}


def test_facts(run):
    text, _ = page_of(run)
    box = part(text, 'facts')
    assert '<code>hff reproduce --preset mini</code>' in box and 'training</dt><dd>36 min' in box and 'seeds</dt><dd>0, 1' in box
    facts = machine_facts()
    assert facts['cores']>=1 and {'processor', 'memory', 'python', 'torch', 'numpy', 'hff'} <= set(facts)
    assert [duration(s) for s in (.4, 7300)]==['0 s', '2.0 h']


@pytest.mark.parametrize('p', sorted((ROOT/'nbs/paper').glob('[!_]*.ipynb')), ids=lambda p: p.stem)
def test_paper_notebooks_have_a_heading(p):
    h = heading(p)
    assert h['title'] and h['promise'] and '#' not in h['title'] and '>' not in h['promise']
