"""The names and signatures of other DropBlock implementations, over the operator of this library.

`torchvision`, `timm` and `mmdet` hold what the packages of these names call DropBlock; `older_package` what the
distribution `dropblock` on PyPI has, which shares our import name (its names are at top level as well). To migrate is
to change the import. What changes with it: blocks of the size asked for lie inside the map, even blocks work, the drop
rate is the one asked for (timm's and the older package's are not), and a non-finite value in a block comes out as 0.

Every module is a layer of this library: it counts what it kept, and a KeepProbSchedule may set its rate (mmdet's
sets its own in every pass).
"""
