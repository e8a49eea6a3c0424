# The mini recipe with the target MyComponent (my_component.py) in place of its semantic codes.
#   asvr train my_component_mini.py
_base_ = ["asvr::asvr_mini"]

custom_imports = dict(imports=["my_component"], allow_failed_imports=False)
model = dict(reconstruction=[dict(type="MyComponent", name="own", tap=-1, weight=0.3, shift=1)])
