"Package metadata lives in `settings.ini`, the version in `hff/__init__.py`."
import re
from configparser import ConfigParser
from pathlib import Path
from setuptools import find_packages, setup

here = Path(__file__).parent
ini = ConfigParser(delimiters=['='], interpolation=None)
ini.read(here/'settings.ini', encoding='utf-8')
cfg, suffix = ini['DEFAULT'], '_requirements'
lib = cfg['lib_path']


def reqs(key):
    "Requirements of one line; a comment there would be split into packages"
    if '#' in cfg[key]: raise SystemExit(f"settings.ini: no comments on the `{key}` line, their words would become dependencies")
    return cfg[key].split()


setup(
    name=cfg['lib_name'], description=cfg['description'], keywords=cfg['keywords'].split(), url=cfg['git_url'],
    version=re.search(r'^__version__ = "(.+)"', (here/lib/'__init__.py').read_text(encoding='utf-8'), re.M)[1],
    author=cfg['author'], author_email=cfg['author_email'], license=cfg['license'],
    long_description=(here/'README.md').read_text(encoding='utf-8'), long_description_content_type='text/markdown',
    packages=find_packages(include=[lib, f'{lib}.*']), python_requires=f">={cfg['min_python']}",
    package_data={lib: ['py.typed', 'presets/*.yaml', 'assets/*', 'workflow/Snakefile', 'workflow/profiles/*/config.yaml']},
    install_requires=reqs('requirements'), extras_require={k.removesuffix(suffix): reqs(k) for k in cfg if k.endswith(suffix)},
    entry_points={'nbdev': [f'{lib} = {lib}._modidx:d'], 'console_scripts': [f'{lib} = {lib}.cli:main']},
)
