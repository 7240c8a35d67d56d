# The dense start on CUB-200-2011: VGG-16-M, 100 epochs from ImageNet weights. What the paper's M changes is not known
# to us; our choice: 13 convolutions with batch norm, average pooling, one linear layer. Put CUB_200_2011 (with
# images.txt, image_class_labels.txt, train_test_split.txt, images/) at data/CUB_200_2011. Crops of 448x448, 8 images
# on each of 8 GPUs and the schedule are those of the stock config for ResNet-50.
#   python tools/train.py configs/dense_vgg16m_cub.py
_base_ = 'mmpretrain::resnet/resnet50_8xb8_cub.py'
custom_imports = dict(imports=['mmprune_gates'])
model = dict(
    backbone=dict(
        _delete_=True,
        type='VGG',
        depth=16,
        norm_cfg=dict(type='BN'),
        num_classes=-1,
        init_cfg=dict(
            type='Pretrained',
            checkpoint=(
                'https://download.openmmlab.com/mmclassification/v0/vgg/'
                'vgg16_bn_batch256_imagenet_20210208-7e55cd29.pth'),
            prefix='backbone.')),
    head=dict(in_channels=512))
