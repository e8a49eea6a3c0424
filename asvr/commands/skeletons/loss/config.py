# The mini recipe, with the loss MyComponent (my_component.py) for its semantic codes.
#   asvr train my_component_mini.py
_base_ = ["asvr::asvr_mini"]

custom_imports = dict(imports=["my_component"], allow_failed_imports=False)
# The recipe's own target with another loss.
model = dict(reconstruction=[dict(_base_.model.reconstruction[0], loss=dict(type="MyComponent", smoothing=0.1))])
