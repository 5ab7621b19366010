"""What methods share whose target is a frozen image network."""

from dataclasses import replace
from functools import partial
from pathlib import Path

from data.datasets.dataset import DataSet, Reader
from data.frame import Needs
from data.samples.single import Single
from slidr.config import Count, MethodSettings, WithImageAugmentation, WithTeacher, key
from slidr.methods.method import Method
from slidr.similarity import Maps, Space, draw_camera_and_similarity, student_features
from slidr.teachers import ProjectedTeacher


class ImageMethod(Method):
    """A student and a projected teacher in one feature space; frames with their images, augmented.

    A subclass writes `forward`, and sets `maps` if it needs superpixels.
    """

    class Settings(MethodSettings, WithTeacher, WithImageAugmentation):
        """Distil a frozen image network into a lidar network."""

        feature_size: Count = key(64, "channels of the shared feature space")

    needs = Needs(cameras="all")
    maps: Maps | None = None  # folder and settings of superpixel maps

    def __init__(self, settings: Settings, dataset: DataSet):
        super().__init__(settings, dataset)
        self.images = ProjectedTeacher(settings, settings.feature_size, settings.crop)
        self.student = self.make_student(settings.feature_size, normalize=True)

    def sample(self, reader: Reader, train: bool) -> Single:
        """A frame with its images (supplement, section B, for the augmentations)."""
        needs = replace(self.needs, shrink=self.settings.image_shrink)
        return Single(reader, needs, self.settings.augment_settings(train), self.maps)

    def describe(self) -> dict[str, str]:
        """The student and the teacher."""
        return super().describe() | {"teacher": self.images.describe()}

    def identity(self) -> dict:
        """The teacher."""
        return {"teacher": ", ".join(self.images.teacher.identity().values())}

    def model_parts(self) -> dict:
        """The heads of points and images, and the teacher."""
        return super().model_parts() | self.images.model_parts()

    def watch(self, reader: Reader, folder: Path, suffix: str = "") -> list[str]:
        """The first camera with its points (and superpixels), and what is similar to one of its points."""
        space = Space(partial(student_features, self.student), self.images, self.settings.crop)
        return draw_camera_and_similarity(reader, space, folder, suffix, self.maps)
