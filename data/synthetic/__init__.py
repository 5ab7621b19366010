"""A small world that writes itself to disk in the official layouts; everything downstream uses the ordinary readers."""

from data.synthetic.write import VERSION, SyntheticWorld, write_kitti, write_nuscenes

__all__ = ["VERSION", "SyntheticWorld", "write_kitti", "write_nuscenes"]
