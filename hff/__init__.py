"Face forgery detection with high-frequency features: the paper of Luo et al. (CVPR 2021) as a library"
__version__ = "0.1.0"
from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hff.checkpoints import load_checkpoint as load_checkpoint, save_checkpoint as save_checkpoint
    from hff.inference import predict as predict
    from hff.models import create_model as create_model
    from hff.paths import HffError as HffError
    from hff.sharing import Detector as Detector

_lazy = dict(create_model='models', load_checkpoint='checkpoints', save_checkpoint='checkpoints', predict='inference', HffError='paths',
             Detector='sharing')


def __getattr__(name):
    "Load the public names when first used, so that `import hff` stays quick"
    if name in _lazy: return getattr(import_module(f'hff.{_lazy[name]}'), name)
    raise AttributeError(f"module 'hff' has no attribute {name!r}")


def __dir__(): return [*globals(), *_lazy]
