"Input that is almost right: plain data, lines, tables and bytes in which a few things were changed"
import contextlib, copy, datetime, decimal, io, json, math

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from hypothesis import strategies as st

TEXTS = ('', ' ', '.', '..', '../x', '../../x.mp4', 'a/../../b.mp4', '/etc/passwd', '\\\\server\\x', 'C:\\x.mp4', 'a\\b', '~/x', 'a\0b', 'a\nb', 'a\r\nb', '\t', '-rf', '--out=x', "x'; ls", '$(ls)',
         'x"y', '%s%n', '{0}', '\ud800', '\udcff', '\ufeff', '\u202etxt', '\u2028', '\u0663', '００１', '𝟘𝟙𝟚', 'İ', 'ß', 'é', 'e\u0301', '😀', 'x'*300, 'é'*200, 'a/'*300, 'NaN', 'inf', '-0', '1e999', '9'*400,
         '1_000', '0x10', 'null', 'true', '[]', '<script>', '000', '001_002', 'real', 'test', '0.5', 'a,b', '#x', '!!python/object/apply:os.system [x]', 'os:system', 'hf-hub:a/b', 'http://127.0.0.1/x')
NUMBERS = (0, 1, -1, 2, 3, 31, 32, 255, 2**31, 2**63, -2**63, 2**64, 10**30, -10**30, .5, -.5, 1e-320, 1e308, -1e308, math.nan, math.inf, -math.inf)
OTHERS = (None, True, False, [], {}, [[]], [0], ['x'], [None], ['a', 'b', 'c'], {'a': 1}, {'': None}, [[['x']]])

texts = st.sampled_from(TEXTS) | st.text(max_size=6)
odd = st.sampled_from(NUMBERS+OTHERS) | texts
_big = st.integers(0, 2**31)


def _places(x):
    "(holder, key) of everything inside plain data"
    keys = list(x) if isinstance(x, dict) else range(len(x)) if isinstance(x, list) else ()
    return [p for k in keys for p in ((x, k), *_places(x[k]))]


@st.composite
def tampered(draw, value, values=odd):
    "Plain data with one to three of its parts replaced, left out, renamed or repeated"
    top = [copy.deepcopy(value)]
    for _ in range(draw(st.integers(1, 3))):
        places = _places(top)
        if not places: break
        holder, key = places[draw(_big)%len(places)]
        how = draw(st.sampled_from(['replace', 'replace', 'replace', 'drop', 'rename', 'repeat']))
        if how=='replace' or holder is top: holder[key] = copy.deepcopy(draw(values))
        elif how=='drop': del holder[key]
        elif isinstance(holder, dict): holder[draw(texts) if how=='rename' else f'{key} '] = copy.deepcopy(holder[key]) if how=='repeat' else holder.pop(key)
        else: holder.insert(key, copy.deepcopy(holder[key]))
    return top[0]


@st.composite
def damaged(draw, data, most=4):
    "Bytes with one to four flips, cuts, insertions, repetitions or a lost end"
    b = bytearray(data)
    for _ in range(draw(st.integers(1, most))):
        i, how = draw(_big)%(len(b)+1), draw(st.sampled_from(['flip', 'flip', 'number', 'cut', 'insert', 'repeat', 'end']))
        if how=='flip': b[i:i+1] = bytes(x^(1<<draw(st.integers(0, 7))) for x in b[i:i+1])
        elif how=='number': b[i:i+4] = draw(st.sampled_from([b'\0'*4, b'\xff'*4, b'\x7f\xff\xff\xff', b'\xff\xff\xff\x7f', b'\0\0\0\1', b'\x80\0\0\0']))[:len(b[i:i+4])]
        elif how=='cut': del b[i:i+draw(st.integers(1, 40))]
        elif how=='insert': b[i:i] = draw(st.binary(max_size=8) | texts.map(lambda t: t.encode('utf-8', 'surrogatepass')))
        elif how=='repeat': b[i:i] = b[i:i+draw(st.integers(1, 200))]
        else: del b[i:]
    return bytes(b)


def documents(value, dump=lambda v: json.dumps(v).encode(), extra=None):
    "JSON (or what `dump` writes) of tampered data, the damaged bytes of the right one, or something extreme"
    extra = extra if extra is not None else st.sampled_from([b'['*4_000, b'{"a":'*2_000+b'1'+b'}'*2_000, b'', b'\xef\xbb\xbf{}', b'\xff\xfe{\0}\0', b'null', b'1'*5000, b'{"a": 1, "a": 2}'])
    return st.one_of(*[tampered(value).map(dump)]*6, *[damaged(dump(value))]*3, extra)


@st.composite
def listed(draw, lines):
    "A list file with some lines changed, and in one of several encodings"
    lines = list(lines)
    for _ in range(draw(st.integers(1, 3))):
        i, how = draw(_big)%(len(lines)+1), draw(st.sampled_from(['replace', 'insert', 'drop', 'repeat', 'word']))
        if how=='insert': lines.insert(i, draw(texts))
        elif how=='drop': del lines[i:i+1]
        elif how=='repeat': lines[i:i] = lines[i:i+1]
        elif how=='replace': lines[i:i+1] = [draw(texts)]
        elif i<len(lines):
            words = lines[i].replace(',', ' , ').split(' ')
            words[draw(_big)%len(words)] = draw(texts)
            lines[i] = ''.join(words) if ',' in words else ' '.join(words)
    text, code = draw(st.sampled_from(['\n', '\r\n', '\r']) ).join(lines), draw(st.sampled_from(['utf-8']*5+['utf-8-sig', 'utf-16', 'latin-1']))
    return text.encode(code, 'surrogatepass' if code.startswith('utf') else 'replace')


def list_files(lines): return listed(lines) | damaged('\n'.join(lines).encode())


_KINDS = (lambda v: decimal.Decimal('1.5'), lambda v: datetime.datetime(2021, 1, 1), lambda v: datetime.date(1, 1, 1), lambda v: b'\xff', lambda v: [v], lambda v: {'a': str(v)}, str, lambda v: None,
          lambda v: True, lambda v: math.nan, lambda v: 2**62, lambda v: -1)

@st.composite
def tables(draw, t):
    "A table with cells, types, rows or columns changed"
    t = t.copy()
    for _ in range(draw(st.integers(1, 3))):
        how = draw(st.sampled_from(['cell']*4+['kind', 'kind', 'drop', 'rename', 'twin', 'repeat', 'none', 'category', 'index']))
        if not t.shape[1]: break
        j, i = draw(_big)%t.shape[1], draw(_big)%max(1, len(t))
        name = t.columns[j]
        if how=='cell' and len(t): t = _set(t, j, [draw(odd) if k==i else v for k, v in enumerate(t.iloc[:, j])])
        elif how=='kind': t = _set(t, j, [f(v) for v in t.iloc[:, j] for f in [_KINDS[draw(_big)%len(_KINDS)]][:1]] if draw(st.booleans()) else list(map(_KINDS[draw(_big)%len(_KINDS)], t.iloc[:, j])))
        elif how=='drop': t = t.drop(columns=name)
        elif how=='rename': t = t.set_axis(pd.Index([draw(texts) if k==j else c for k, c in enumerate(t.columns)], dtype=object), axis=1)
        elif how=='twin': t = pd.concat([t, t.iloc[:, [j]]], axis=1)
        elif how=='repeat': t = pd.concat([t, t.iloc[[i]]] if len(t) else [t])
        elif how=='none': t = t.iloc[:0]
        elif how=='category': t = _set(t, j, pd.Series([_text(v) for v in t.iloc[:, j]], index=t.index, dtype='category'))
        elif how=='index': t = t.set_axis(range(5, 5+len(t)) if draw(st.booleans()) else pd.Index(list(t.iloc[:, j]), dtype=object, name=name, tupleize_cols=False))
    return t


def _set(t, j, column):
    "A copy in which the `j`-th column is another one"
    new = pd.Series(column, index=t.index, dtype=object if isinstance(column, list) else None)
    if isinstance(column, list):
        with contextlib.suppress(UnicodeError): new = new.infer_objects()          # half a character stays an object
    out = pd.concat([(new if k==j else t.iloc[:, k]).rename(k) for k in range(t.shape[1])], axis=1)
    return out.set_axis(pd.Index(list(t.columns), dtype=object, tupleize_cols=False), axis=1)


def parquet(t, meta=None):
    "Bytes of a parquet file; a column of mixed things becomes text"
    def whole(t): return pa.Table.from_arrays([_array(t.iloc[:, j]) for j in range(t.shape[1])], names=[_text(c) for c in t.columns])
    table = whole(t)
    try: table = pa.Table.from_pandas(t)
    except Exception: pass
    for more in ([meta] if meta else [])+[{}]:                       # odd metadata, unless it cannot be written
        with contextlib.suppress(UnicodeError):
            pq.write_table(table.replace_schema_metadata({**(table.schema.metadata or {}), **more}), b := io.BytesIO())
            return b.getvalue()


def _text(x): return str(x).encode('utf-8', 'replace').decode()

def _array(c):
    try: return pa.array(c.tolist())
    except Exception: return pa.array([_text(v) for v in c])


def parquets(t):
    "Parquet files of changed tables, with odd metadata, or damaged"
    metas = st.fixed_dictionaries({}, optional={b'pandas': damaged(b'{"columns": [], "index_columns": ["x"]}') | st.sampled_from([b'null', b'[]', b'{}', b'\xff']),
                                                b'hff': st.sampled_from([b'checked manifest', b'', b'\xff'])})
    return st.one_of(*[tables(t).map(parquet)]*5, st.tuples(tables(t), metas).map(lambda a: parquet(*a)), damaged(parquet(t)))


def csvs(t):
    "CSV files of changed tables, or damaged"
    text = lambda t: t.to_csv(index=False).encode('utf-8', 'surrogatepass')
    return st.one_of(*[tables(t).map(text)]*3, list_files(text(t).decode().splitlines()))
