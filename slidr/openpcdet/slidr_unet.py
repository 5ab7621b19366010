"""A pretrained lidar network of this program as a backbone of OpenPCDet, for heads that work on points (PointRCNN).

Written by `python run.py export --to openpcdet`; the README.md beside it says where it goes. The program's folder must
be on PYTHONPATH: the sparse convolutions are its own, in place of spconv.
"""

from pathlib import Path

import torch
from torch import nn

from data.frame import Batch, Pairs
from slidr.networks.model_file import load_student, read_model
from slidr.networks.student import of_points


class SlidrUNet(nn.Module):
    """What OpenPCDet asks of a BACKBONE_3D.

    Args:
        model_cfg: WEIGHTS, a model.pt; INTENSITY_SCALE and INTENSITY_OFFSET, which make the network's input feature of
            the stored intensity; BN_MOMENTUM, of batch norm outside the residual blocks.
        input_channels, and others: of the points, which have x, y, z and intensity first; not needed.

    Attributes:
        num_point_features: channels of a point's features (96 at width 1).
    """

    def __init__(self, model_cfg, input_channels: int, **others):
        super().__init__()
        path = Path(model_cfg["WEIGHTS"])
        self.student = load_student(read_model(path), path, None, bn_momentum=model_cfg["BN_MOMENTUM"])
        self.scale, self.offset = model_cfg["INTENSITY_SCALE"], model_cfg["INTENSITY_OFFSET"]
        self.num_point_features = self.student.network.channels

    def forward(self, batch_dict: dict) -> dict:
        """Adds `point_features [N, num_point_features]` and `point_coords [N, 4]` (batch index, x, y, z).

        Args:
            batch_dict: `batch_size`, and `points [N, 5 or more]`: batch index, x, y, z in metres, intensity.
        """
        points = batch_dict["points"]
        batch = Batch(
            points=points[:, 1:5],
            features=points[:, 4:5] * self.scale + self.offset,
            batch_index=points[:, 0].long(),
            labels=None,
            images=None,
            superpixels=None,
            pairs=Pairs.empty(),
            ids=[str(i) for i in range(batch_dict["batch_size"])],
        )
        x, voxels = self.student.backbone(batch)
        batch_dict["point_features"] = of_points(x.features, voxels.inverse, torch.nan)
        batch_dict["point_coords"] = points[:, :4]
        return batch_dict
