"""ResNet under torchvision's key names, dilated or strided."""

import torch
import torch.nn.functional as F
from torch import nn


class Bottleneck(nn.Module):
    """1x1, 3x3, 1x1 convolutions with a shortcut (ResNet-50)."""

    expansion = 4

    def __init__(self, channels: int, width: int, stride: int, dilation: int):
        super().__init__()
        out = width * self.expansion
        self.conv1 = nn.Conv2d(channels, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, dilation, dilation, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, out, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(out)
        self.downsample = _shortcut(channels, out, stride)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`[B, channels, h, w]` -> `[B, 4 * width, h / stride, w / stride]`."""
        shortcut = x if self.downsample is None else self.downsample(x)
        x = F.relu(self.bn1(self.conv1(x)))
        x = F.relu(self.bn2(self.conv2(x)))
        return F.relu(self.bn3(self.conv3(x)) + shortcut)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions with a shortcut (ResNet-18)."""

    expansion = 1

    def __init__(self, channels: int, width: int, stride: int, dilation: int):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 3, stride, dilation, dilation, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, dilation, dilation, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.downsample = _shortcut(channels, width, stride)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`[B, channels, h, w]` -> `[B, width, h / stride, w / stride]`."""
        shortcut = x if self.downsample is None else self.downsample(x)
        x = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(x)) + shortcut)


def _shortcut(channels: int, out: int, stride: int) -> nn.Sequential | None:
    if stride == 1 and channels == out:
        return None
    return nn.Sequential(nn.Conv2d(channels, out, 1, stride, bias=False), nn.BatchNorm2d(out))


class ResNet(nn.Module):
    """ResNet without its classifier; strides after the stem's replaced by dilation, or kept.

    Args:
        block: BasicBlock or Bottleneck.
        blocks: blocks of each layer.
        width: channels of the stem; layer i has width * 2^i (times the block's expansion).
        dilated: output stride 4 (the published recipe) instead of 4 * 2^(layers - 1).
    """

    def __init__(self, block: type, blocks: tuple[int, ...], width: int = 64, dilated: bool = True):
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        self.layers = len(blocks)
        channels, dilation = width, 1
        for i, count in enumerate(blocks):
            stride = 2 if i else 1
            before = dilation  # the first block of a dilated layer still sees the previous layer's dilation
            if dilated and i:
                dilation, stride = 2 * dilation, 1
            planes = width * 2**i
            layer = [block(channels, planes, stride, before)]
            channels = planes * block.expansion
            layer += [block(channels, planes, 1, dilation) for _ in range(count - 1)]
            self.add_module(f"layer{i + 1}", nn.Sequential(*layer))
        self.channels = channels
        self.stride = 4 if dilated else 4 * 2 ** (len(blocks) - 1)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):  # keeps the scale of random features through the layers
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`[B, 3, h, w]` normalised -> `[B, channels, h / stride, w / stride]`."""
        return self.late(x, 1)[0][0]

    def late(self, x: torch.Tensor, layers: int) -> tuple[list[torch.Tensor], torch.Tensor]:
        """What the last `layers` layers give, first to last, and the mean of the last one over the image.

        The mean `[B, channels]` is what a classifier would see, as it sees a ViT's class token.
        """
        x, outputs = self.maxpool(F.relu(self.bn1(self.conv1(x)))), []
        for i in range(self.layers):
            x = getattr(self, f"layer{i + 1}")(x)
            outputs.append(x)
        return outputs[-layers:], x.mean((2, 3))
