"""The pretraining methods by name. A new one is one file with a `Method`, and one line here."""

from data.datasets.dataset import named_object
from data.files import InputError
from slidr.config import MethodSettings
from slidr.methods.method import Method

METHODS = {
    "slidr": "slidr.methods.slidr:SLidR",
    "ppkt": "slidr.methods.ppkt:PPKT",
    "st_slidr": "slidr.methods.st_slidr:STSLidR",
    "scalr": "slidr.methods.scalr:ScaLR",
    "late_layers": "slidr.methods.late_layers:LateLayers",
    "pointcontrast": "slidr.methods.pointcontrast:PointContrast",
    "depthcontrast": "slidr.methods.depthcontrast:DepthContrast",
}


def find_method(name: str) -> type[Method]:
    """A method by its name, or by `package.module:CLASS`; InputError if there is none."""
    method = named_object(name, METHODS, "method")
    if not (isinstance(method, type) and issubclass(method, Method)):
        raise InputError(f"`{name}` is no slidr.methods.method.Method class.")
    return method


def settings_of(name: str) -> type[MethodSettings]:
    """The settings of a method: the common keys and its own."""
    return find_method(name).Settings
