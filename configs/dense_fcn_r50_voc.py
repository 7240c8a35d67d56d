# The dense start of FCN on ResNet-50, VOC 2011 + SBD: the stock FCN-R50-D8 with the data of Gate Decorator's
# segmentation experiment. Its 8498 training and 2857 validation images are the train.txt and val.txt of SBD. Put SBD's
# benchmark_RELEASE (with dataset/img, dataset/cls, ...) at data/sbd; masks are made from its MATLAB files by
# mmsegmentation's converter:
#   python tools/stock.py mmseg:dataset_converters/voc_aug.py data/VOCdevkit data/sbd -o data/sbd/dataset/masks
#   python tools/train.py configs/dense_fcn_r50_voc.py
# (Last, the converter writes lists for VOC 2012. Without that at data/VOCdevkit it stops there; the masks are done.)
_base_ = [
    'mmseg::_base_/models/fcn_r50-d8.py', 'mmseg::_base_/datasets/pascal_voc12.py',
    'mmseg::_base_/default_runtime.py', 'mmseg::_base_/schedules/schedule_40k.py']
custom_imports = dict(imports=['mmprune_gates'])
model = dict(
    data_preprocessor=dict(size=(512, 512)), decode_head=dict(num_classes=21), auxiliary_head=dict(num_classes=21))
sbd = dict(data_root='data/sbd/dataset', data_prefix=dict(img_path='img', seg_map_path='masks'))
train_dataloader = dict(batch_size=16, dataset=dict(ann_file='train.txt', **sbd))  # on one GPU
val_dataloader = dict(dataset=dict(ann_file='val.txt', **sbd))
test_dataloader = val_dataloader
