# Scenes of known objects: a small Llama learns, from nothing, to answer questions on number, colour, place, pose and
# letters, in drawings that it never saw, while it predicts the semantic codes of each picture.
#   pip install -e '.[mini]' && python tools/train.py configs/scenes_mini.py
_base_ = ['./asvr_mini.py']

text_tokenizer = dict(
    vocab_size=1024, corpus=dict(_delete_=True, type='Scenes', scenes=3000, per_scene=None, captions=True))

model = dict(
    encoder=dict(layer=-2),  # 8 x 8 tokens of 112 features
    llm=dict(arch=dict(hidden_size=160, intermediate_size=480, num_hidden_layers=3, num_attention_heads=5)))

data = dict(
    train=dict(_delete_=True, type='Scenes', scenes=12000, per_scene=2), max_length=144)
schedule = dict(steps=2000)

stages = dict(
    _delete_=True,
    blind=dict(
        init='scratch',
        train=['projector', 'heads', 'llm'],
        data=dict(train=dict(with_images=False)),
        schedule=dict(steps=600),
        evaluation=dict(dataset=dict(with_images=False))),
    pretrain=dict(
        init='scratch',
        train=['projector', 'heads', 'llm'],
        data=dict(train=dict(kinds=[], captions=True)),
        schedule=dict(steps=300),
        evaluation=None),
    finetune=dict(train=['projector', 'heads', 'llm']))
evaluation = dict(dataset=dict(_delete_=True, type='Scenes', split='test', scenes=600, per_scene=None))
