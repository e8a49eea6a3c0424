# The mini recipe, evaluated with the metric MyComponent (my_component.py) besides the accuracy.
#   asvr train my_component_mini.py
_base_ = ["asvr::asvr_mini"]

custom_imports = dict(imports=["my_component"], allow_failed_imports=False)
evaluation = dict(metrics=[dict(type="ExactMatch"), dict(type="MyComponent")])
