# The dense start of Gate Decorator's segmentation experiment: FCN on VGG-16 without batch norm, VOC 2011 + SBD. Its
# 8498 training and 2857 validation images are the train.txt and val.txt of SBD. Put SBD's benchmark_RELEASE (with
# dataset/img, dataset/cls, ...) at data/sbd; masks are made from its MATLAB files by mmsegmentation's converter:
#   python tools/stock.py mmseg:dataset_converters/voc_aug.py data/VOCdevkit data/sbd -o data/sbd/dataset/masks
#   python tools/train.py configs/dense_fcn_voc.py
# (Last, the converter writes lists for VOC 2012. Without that at data/VOCdevkit it stops there; the masks are done.)
_base_ = [
    'mmseg::_base_/models/fcn_r50-d8.py', 'mmseg::_base_/datasets/pascal_voc12.py',
    'mmseg::_base_/default_runtime.py', 'mmseg::_base_/schedules/schedule_40k.py']
custom_imports = dict(imports=['mmprune_gates', 'mmpretrain.models'])

# ---- model: FCN-32s, but its head has two 3x3 convolutions of 1024 channels and one dropout in place of fc6 (7x7, 4096
# channels) and fc7 (1x1, 4096), each with dropout: 4 % of the MACs are in it, not 28 %. Scores are upsampled
# bilinearly, not by a learned layer.
model = dict(
    data_preprocessor=dict(size=(512, 512)),
    pretrained=None,
    backbone=dict(
        _delete_=True,
        type='mmpretrain.VGG',
        depth=16,
        num_classes=-1,
        norm_cfg=None,
        out_indices=(4,),
        init_cfg=dict(
            type='Pretrained',
            checkpoint='https://download.openmmlab.com/mmclassification/v0/vgg/vgg16_batch256_imagenet_20210208-db26f1a5.pth',
            prefix='backbone.')),
    decode_head=dict(
        in_channels=512, in_index=0, channels=1024, num_convs=2, concat_input=False, dropout_ratio=0.5, num_classes=21,
        norm_cfg=None),
    auxiliary_head=None)

# ---- data
sbd = dict(data_root='data/sbd/dataset', data_prefix=dict(img_path='img', seg_map_path='masks'))
train_dataloader = dict(batch_size=16, dataset=dict(ann_file='train.txt', **sbd))  # on one GPU
val_dataloader = dict(dataset=dict(ann_file='val.txt', **sbd))
test_dataloader = val_dataloader

# ---- schedule: our choice; without norm the learning rate is a tenth of the stock one, but for the new head
optim_wrapper = dict(optimizer=dict(lr=1e-3), paramwise_cfg=dict(custom_keys=dict(decode_head=dict(lr_mult=10))))
