# The mini recipe with the projector MyComponent (my_component.py).
#   asvr train my_component_mini.py
_base_ = ["asvr::asvr_mini"]

custom_imports = dict(imports=["my_component"], allow_failed_imports=False)
model = dict(projector=dict(_delete_=True, type="MyComponent"))
