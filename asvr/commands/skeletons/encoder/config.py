# The mini recipe with the encoder MyComponent (my_component.py). It is frozen: its features are computed once.
#   asvr train my_component_mini.py
_base_ = ["asvr::asvr_mini"]

custom_imports = dict(imports=["my_component"], allow_failed_imports=False)
model = dict(encoder=dict(_delete_=True, type="MyComponent", image_size=64, patch=16))
