"""ScaLR: each point's feature becomes the frozen image network's at its pixel (Puy et al., CVPR 2024)."""

from data.datasets.dataset import DataSet
from data.frame import Batch
from slidr.losses import unit_distance
from slidr.methods.regression import RegressionMethod
from slidr.training.learner import Step


class ScaLR(RegressionMethod):
    """No negatives, no superpixels, no temperature: the mean distance of unit vectors, over all pairs.

    Published for a WaffleIron that sees only the points of one camera, moved, flipped and scaled; here for the sparse
    U-Net, which sees the whole scan, with SLidR's rotation and flips.
    """

    class Settings(RegressionMethod.Settings):
        """Regress a frozen image network's features, point by point (ScaLR, CVPR 2024)."""

    def __init__(self, settings: Settings, dataset: DataSet):
        super().__init__(settings, dataset)
        self.point_head = self.make_head(self.teacher.channels)

    def forward(self, batch: Batch) -> Step:
        """Mean distance to the teacher's features (eq. 1)."""
        features, _, pairs = self.voxels(batch)
        rows = self.matched(self.point_head, features, self.teacher(batch.images), batch.images.shape[2:], pairs)
        return Step(unit_distance(*rows), {"pairs": len(pairs)})
