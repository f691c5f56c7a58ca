"""A variational autoencoder on MNIST: the library behind the pipeline.

Names are imported when they are first used, as `__init__.pyi` lists them: importing torch takes seconds.
"""

import lazy_loader

__version__ = "0.1.0"
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
