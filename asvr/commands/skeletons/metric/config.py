# The mini recipe, evaluated with the accuracy and with the metric MyComponent (my_component.py).
#   asvr train my_component_mini.py
_base_ = ["asvr::asvr_mini"]

custom_imports = dict(imports=["my_component"], allow_failed_imports=False)
evaluation = dict(metrics=[dict(type="ExactMatch"), dict(type="MyComponent")])
