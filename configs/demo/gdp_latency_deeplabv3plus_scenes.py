# GDP on the demo data until the model takes 45 % of the time in onnxruntime on this machine, whatever its MACs. Needs
# tools/analysis_tools/latency_table.py THIS_CONFIG --backend onnxruntime once.
_base_ = './gdp_deeplabv3plus_scenes.py'
custom_hooks = [
    dict(
        type='mmprune_gates.PolarizationHook',
        target=0.45,
        cost=dict(type='Latency', backend='onnxruntime')),
    dict(type='mmprune_gates.MeasuredLatencyHook'),
    dict(type='mmprune_gates.GateRecordHook', interval=20)]
