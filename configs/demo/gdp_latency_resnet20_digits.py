# GDP on digits until the model takes 60 % of the time in onnxruntime on this machine, 64 images at a time. Needs
# tools/analysis_tools/latency_table.py THIS_CONFIG --backend onnxruntime --batch 64 once.
_base_ = './gdp_resnet20_digits.py'
custom_hooks = [
    dict(
        type='mmprune_gates.PolarizationHook',
        target=0.6,
        cost=dict(type='Latency', backend='onnxruntime', batch=64)),
    dict(type='mmprune_gates.MeasuredLatencyHook')]
