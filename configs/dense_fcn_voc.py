# The dense start of Gate Decorator's segmentation experiment: FCN on VGG-16 without batch norm, VOC 2011 + SBD. Data
# and schedule are those of dense_fcn_r50_voc.py, where it is said how to get the masks.
#   python tools/train.py configs/dense_fcn_voc.py
_base_ = './dense_fcn_r50_voc.py'
custom_imports = dict(imports=['mmprune_gates', 'mmpretrain.models'])

# FCN-32s, but its head has two 3x3 convolutions of 1024 channels and one dropout in place of fc6 (7x7, 4096 channels)
# and fc7 (1x1, 4096), each with dropout: 4 % of the MACs are in it, not 28 %. Scores are upsampled bilinearly, not by
# a learned layer.
model = dict(
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
        in_channels=512, in_index=0, channels=1024, num_convs=2, concat_input=False, dropout_ratio=0.5,
        norm_cfg=None),
    auxiliary_head=None)
# our choice; without norm the learning rate is a tenth of the stock one, but for the new head
optim_wrapper = dict(optimizer=dict(lr=1e-3), paramwise_cfg=dict(custom_keys=dict(decode_head=dict(lr_mult=10))))
