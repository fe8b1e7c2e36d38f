"""The documentation site, from the notebooks: `python .ci/docs.py _site`

Needs the extra `docs`. No notebook is run, nothing is fetched; the site needs no network and no server."""
import ast, base64, html, importlib, inspect, io, logging, os, re, sys, unicodedata
from pathlib import Path
from shutil import copy2, copytree, ignore_patterns
from tempfile import TemporaryDirectory

from fastcore.docments import DocmentTbl
from latex2mathml.converter import convert
from nbdev.process import NBProcessor
from nbdev.processors import clean_magics, hide_, hide_line, rm_header_dash, strip_ansi
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
GROUPS = {0: 'Paths and recipe', 10: 'The network', 20: 'Data', 29: 'MiniFF', 40: 'Learning and measuring', 44: 'Looking', 60: 'Reproduction'}   # first number: rooms of nbs/
PAPER, API = "The paper's tables", 'API'


def natural(p):
    "Sort key: tables first, table 2 before table 10"
    return not p.stem.startswith('table'), [int(s) if s.isdigit() else s for s in re.split(r'(\d+)', p.stem)]


def sources():
    "group -> notebooks, in reading order"
    out = {g: [] for g in GROUPS.values()}
    for p in sorted(ROOT.glob('nbs/[0-9]*.ipynb')): out[GROUPS[max(n for n in GROUPS if n<=int(p.stem[:2]))]].append(p)
    return {**out, PAPER: sorted(ROOT.glob('nbs/paper/[!_]*.ipynb'), key=natural)}


# Notebooks

def fence(text, head=''):
    "A fenced block around text that may hold fences"
    ticks = '`'*max(3, 1+max(map(len, re.findall('`+', text)), default=0))
    return f'{ticks}{head}\n{text.rstrip()}\n{ticks}'


def picture(data, kind, name, alt, files):
    "Markdown of a stored picture, which goes to `files`; png are stored at twice their size"
    files[f'{name}.{kind}'] = raw = base64.b64decode(''.join(data))
    width = Image.open(io.BytesIO(raw)).width//(2 if kind=='png' else 1)
    return f'![{alt}]({name}.{kind}){{ loading=lazy width={width} }}'


def output(o, name, alt, files):
    "Markdown of one output"
    data = {k: ''.join(v) for k, v in o.get('data', {}).items() if k.startswith(('text', 'image'))}
    for kind in ('png', 'jpeg'):
        if f'image/{kind}' in data: return picture(data[f'image/{kind}'], kind, name, alt, files)
    if 'text/html' in data: return re.sub(r'<style scoped>.*?</style>\s*|border="1" class="dataframe"|\n\s*(?=\n)', '', data['text/html'], flags=re.S)
    return data.get('text/markdown') or fence(''.join(o.get('text', '')) or data.get('text/plain', ''), ' {.text .no-copy}')


def only_imports(source):
    "Is there nothing but imports in this cell?"
    return all(isinstance(n, (ast.Import, ast.ImportFrom)) for n in ast.parse(source).body)


class Notebook:
    "Title, module, Markdown and pictures of a notebook"
    def __init__(self, path):
        self.path, self.files, self.module, body, heading = path, {}, '', [], ''
        p = NBProcessor(path, procs=[strip_ansi, hide_line, rm_header_dash, clean_magics, hide_])
        for c in p.nb.cells: self.module = ' '.join(c.directives_.get('default_exp', '').split()) or self.module
        p.process()
        for i, c in enumerate(p.nb.cells):
            if not c.source.strip() or 'export' in c.directives_ and only_imports(c.source): continue
            if c.cell_type!='code':
                body.append(c.source)
                heading = (re.findall(r'^#+ (.*)', c.source, re.M) or [heading])[-1]
                continue
            title = f' title="hff/{self.module.replace(".", "/")}.py"' if 'export' in c.directives_ else ' title="parameters"' if 'parameters' in c.metadata.get('tags', []) else ''
            body.append(fence(c.source, 'python'+title))
            outs = [output(o, f'{path.stem}_{i}_{j}', re.sub(r'[\[\]`$]', '', heading), self.files) for j, o in enumerate(c.get('outputs', []))]
            if outs: body.append('<div class="output" markdown>\n\n'+'\n\n'.join(outs)+'\n\n</div>')
        self.text = '\n\n'.join(body)
        self.title = re.search('^# (.*)', self.text, re.M)[1]
        self.promise = ' '.join(re.search(r'((?:^> .*\n?)+)', self.text, re.M)[1].replace('> ', '').split())
        self.page = f'{"paper" if path.parent.name=="paper" else "notebooks"}/{path.stem}.md'


# The API

class Parameters(DocmentTbl):
    "nbdev's table of parameters, with the meaning first: a phone shows two columns"
    _map = dict(docment='Meaning', anno='Type', default='Default')


def params(f):
    "Names and defaults of a callable, short"
    try: sig = inspect.signature(f)
    except (TypeError, ValueError): return ''
    return str(sig.replace(return_annotation=sig.empty, parameters=[p.replace(annotation=p.empty) for p in sig.parameters.values()]))


def plain(text):
    "Markdown in which `<` is no tag"
    return re.sub('(`[^`]*`)|<(?!br>)', lambda m: m[1] or '&lt;', text)


def constant(name, value):
    "Markdown of a public value"
    text = f'{name} = {value!r}'
    return f'### {name} {{ #{name} }}\n\n'+(fence(text, 'python') if len(text)<500 and ' at 0x' not in text else f'A `{type(value).__name__}` with {len(value)} entries.')


def entry(name, obj, level='##'):
    "Markdown of a function or class: signature, promise, parameters"
    is_class = inspect.isclass(obj)
    parts = [f'{level} {name} {{ #{name} }}', fence(f"{'class ' if is_class else ''}{name}{params(obj)}", ' {.python .signature}'), plain(inspect.getdoc(obj) or '')]
    if is_class and issubclass(obj, tuple): parts.append(fence(inspect.getsource(obj), 'python'))     # the comments of its fields are found nowhere else
    elif table := str(Parameters(obj)): parts.append(f'<div class="parameters" markdown>\n\n{plain(table)}\n\n</div>')
    if is_class: parts += [entry(f'{name}.{k}', m, level+'#') for k, m in vars(obj).items() if inspect.isfunction(m) and m.__doc__ and k[0]!='_']
    return '\n\n'.join(parts)


def api_page(nb, mod):
    "Markdown of a module's page: functions and classes, then values"
    public = {n: getattr(mod, n) for n in mod.__all__}
    parts = [f'# {mod.__name__}', f'> {nb.promise}', f'Explained in [{nb.title}](../{nb.page}).', *(entry(n, o) for n, o in public.items() if callable(o))]
    values = [constant(n, o) for n, o in public.items() if not callable(o) and not inspect.ismodule(o)]
    return '\n\n'.join(parts+(['## Values']+values if values else []))+'\n'


# Links

class Linker:
    "Turns names in backticks into links: public names to the API, notebooks to their pages"
    def __init__(self, books, modules):
        self.to = {f'nbs/{nb.path.relative_to(ROOT/"nbs").as_posix()}': nb.page for nb in books}
        seen = {}
        for m in modules.values():
            self.to |= {m.__name__: f'api/{m.__name__}.md'} | {f'{m.__name__}.{n}': f'api/{m.__name__}.md#{n}' for n in m.__all__}
            for n in m.__all__: seen.setdefault(n, []).append(f'api/{m.__name__}.md#{n}')
        self.to |= {n: to[0] for n, to in seen.items() if len(to)==1} | {f'hff.{n}': to[0] for n, to in seen.items() if len(to)==1}

    def __call__(self, text, page):
        up = '../'*page.count('/')
        def link(m):
            to = self.to.get(m[1].removesuffix('()'))
            return f'[{m[0]}]({up}{to})' if to and not to.startswith(page) else m[0]
        blocks = re.split(r'(^(`{3,}).*?^\2$)', text, flags=re.M|re.S)           # code stays as it is
        out, skip = [], False
        for b in blocks:
            if skip: skip = False; continue                                     # the fence that split has caught
            skip = b.startswith('```')
            out.append(b if skip else '\n'.join(l if l.startswith('#') else re.sub(r'(?<![`\[])`([\w./]+(?:\(\))?)`(?![`\]])', link, l) for l in b.split('\n')))
        return ''.join(out)


# Formulas

def mathml(tex, display):
    "A formula for the browser to set, without a script or a font"
    out = convert(re.sub(r'\\arg\\(min|max)', r'\\operatorname{arg\1}', tex), display=display)
    letters = lambda m: unicodedata.lookup('SCRIPT CAPITAL L') if m[1]=='L' else chr(ord('𝒜')+ord(m[1])-ord('A'))
    out = re.sub(r'<mi mathvariant="script">([A-Z])</mi>', lambda m: f'<mi>{letters(m)}</mi>', out)
    if bad := re.findall(r'\\[a-zA-Z]+', html.unescape(out)): raise SystemExit(f'docs: the formula {tex!r} uses {", ".join(bad)}, which MathML was not made of')
    return out


def on_page_content(content, **_):
    "mkdocs calls this for each page"
    pattern = r'<(span|div) class="arithmatex">\\[(\[](.*?)\\[)\]]</\1>'
    return re.sub(pattern, lambda m: f'<{m[1]} class="arithmatex">{mathml(html.unescape(m[2]), "block" if m[1]=="div" else "inline")}</{m[1]}>', content, flags=re.S)


# The site

def write(docs, page, text):
    (docs/page).parent.mkdir(parents=True, exist_ok=True)
    (docs/page).write_text(text, encoding='utf-8')


def pages(docs):
    "Write every page as Markdown into `docs`; the navigation is returned"
    groups = {g: [Notebook(p) for p in ps] for g, ps in sources().items()}
    books = [nb for nbs in groups.values() for nb in nbs]
    modules = {nb.page: importlib.import_module(f'hff.{nb.module}') for nb in books if nb.module}
    link = Linker(books, modules)
    for nb in books:
        write(docs, nb.page, link(nb.text, nb.page))
        for name, raw in nb.files.items(): (docs/nb.page).with_name(name).write_bytes(raw)
    lines, table = ['# Contents\n\n> Every notebook, in reading order\n'], ['# All modules\n\n> Names in code, such as `video_auc`, link here\n\n| module | what | explained in |\n|---|---|---|']
    for g, nbs in groups.items():
        if nbs: lines.append(f'## {g}\n\n'+'\n'.join(f'- [{nb.title}]({nb.page}): {nb.promise}' for nb in nbs)+'\n')
    for nb in books:
        if mod := modules.get(nb.page):
            write(docs, f'api/{mod.__name__}.md', link(api_page(nb, mod), f'api/{mod.__name__}.md'))
            table.append(f'| [{mod.__name__}]({mod.__name__}.md) | {nb.promise} | [{nb.title}](../{nb.page}) |')
    write(docs, 'contents.md', '\n'.join(lines))
    write(docs, 'api/index.md', '\n'.join(table)+'\n')
    write(docs, 'index.md', link((ROOT/'README.md').read_text(encoding='utf-8'), 'index.md'))
    for name in ('site.css', 'iframe-worker.js'): copy2(ROOT/'.ci'/name, docs/name)
    copytree(ROOT/'figures', docs/'figures', ignore=ignore_patterns('*.md', '.*', 'smoke'))
    run = [{'The committed run': 'figures/mini/index.html'}] if (docs/'figures/mini/index.html').is_file() else []
    nav = [{g: [{nb.title: nb.page} for nb in nbs]+(run if g==PAPER else [])} for g, nbs in groups.items() if nbs]
    return [{'Home': 'index.md'}, {'Contents': 'contents.md'}, *nav, {API: [{'All modules': 'api/index.md'}, *({m.__name__.removeprefix('hff.'): f'api/{m.__name__}.md'} for m in modules.values())]}]


def main(out):
    "Build the site into the folder `out`; an older site there is replaced"
    from mkdocs.commands.build import build
    from mkdocs.config import load_config
    out = Path(out).resolve()
    if out.is_file() or out.is_dir() and any(out.iterdir()) and not (out/'search/search_index.js').is_file(): raise SystemExit(f'docs: {out} is not empty and not a site: name another folder')
    logging.basicConfig(level=logging.WARNING, format='docs: %(message)s')
    os.chdir(ROOT)                                               # nbdev looks for its settings from here
    sys.path.insert(0, str(ROOT))                                # the library of this checkout
    from hff.paths import atomic
    with TemporaryDirectory() as tmp, atomic(out) as new:
        docs = Path(tmp).resolve()
        build(load_config('.ci/mkdocs.yml', docs_dir=str(docs), nav=pages(docs), site_dir=str(new)))
    print(f'{out/"index.html"} is the first page')


if __name__=='__main__': main(*sys.argv[1:] or ['_site'])
