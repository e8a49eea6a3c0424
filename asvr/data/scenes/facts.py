"""Facts about objects that no image shows: each phrase with the names of the objects for which it is true.

A phrase completes "which of these ...?". It counts as false for objects that are not listed. Doubtful objects (is a
tomato a fruit?) are listed in ``DOUBTFUL``, and no question with that phrase is asked about them.
"""

FACTS = {
    "is a fruit": (
        "banana, blueberries, cherries, coconut, grapes, green apple, kiwi fruit, lemon, mango, melon, peach, pear, "
        "pineapple, red apple, strawberry, tangerine, watermelon"
    ),
    "is a vegetable": (
        "bell pepper, broccoli, carrot, cucumber, eggplant, garlic, leafy green, onion, potato, roasted sweet potato"
    ),
    "is a drink": (
        "beer mug, beverage box, bubble tea, clinking beer mugs, clinking glasses, cocktail glass, cup with straw, "
        "glass of milk, hot beverage, mate, sake, teacup without handle, tropical drink, tumbler glass, wine glass"
    ),
    "is a kind of bird": (
        "baby chick, bird, black bird, chicken, dodo, dove, duck, eagle, flamingo, front facing baby chick, goose, "
        "hatching chick, owl, parrot, peacock, penguin, rooster, swan, turkey"
    ),
    "is an insect": "ant, beetle, butterfly, cockroach, cricket, fly, honeybee, lady beetle, mosquito",
    "lives in the sea": (
        "blowfish, coral, crab, dolphin, fish, jellyfish, lobster, octopus, oyster, seal, shark, shrimp, spiral shell, "
        "spouting whale, squid, tropical fish, whale"
    ),
    "can carry people through the air": (
        "airplane, airplane arrival, airplane departure, helicopter, parachute, rocket, small airplane, flying saucer"
    ),
    "floats on water": ("canoe, ferry, motor boat, passenger ship, ring buoy, sailboat, ship, speedboat"),
    "runs on rails": (
        "bullet train, high speed train, light rail, locomotive, metro, monorail, mountain railway, railway car, "
        "station, suspension railway, train, tram, tram car"
    ),
    "is worn on the feet": (
        "ballet shoes, flat shoe, high heeled shoe, hiking boot, ice skate, man's shoe, roller skate, running shoe, "
        "skis, socks, thong sandal, woman's boot, woman's sandal"
    ),
    "is worn on the head": (
        "billed cap, crown, graduation cap, military helmet, rescue worker's helmet, top hat, woman's hat"
    ),
    "makes music": (
        "accordion, banjo, drum, flute, guitar, long drum, maracas, musical keyboard, saxophone, trumpet, violin"
    ),
    "is a ball": "baseball, basketball, soccer ball, softball, tennis, volleyball",
    "is a flower": (
        "blossom, bouquet, cherry blossom, hibiscus, hyacinth, lotus, rose, rosette, sunflower, tulip, white flower, "
        "wilted flower"
    ),
    "is a tree": "deciduous tree, evergreen tree, palm tree",
}

DOUBTFUL = {
    "is a fruit": "avocado, bell pepper, cucumber, eggplant, olive, tomato, hot pepper, pea pod, chestnut, peanuts",
    "is a vegetable": (
        "avocado, beans, cactus, chestnut, ear of corn, ginger root, green salad, herb, hot pepper, mushroom, olive, "
        "pea pod, peanuts, seedling, shamrock, four leaf clover, tomato, canned food, pot of food, bento box, "
        "falafel, oden"
    ),
    "is a drink": "baby bottle, bottle with popping cork, coconut, honey pot, ice, pouring liquid, shaved ice, teapot",
    "is a kind of bird": "bat, egg, feather, nest with eggs, poultry leg, wing, empty nest",
    "is an insect": "bug, microbe, scorpion, snail, spider, spider web, worm",
    "lives in the sea": (
        "crocodile, fish cake with swirl, flamingo, fried shrimp, goose, hippopotamus, otter, penguin, sauropod, "
        "snail, sushi, turtle, duck, swan, beaver, anchor"
    ),
    "can carry people through the air": "aerial tramway, mountain cableway, satellite, dragon, eagle, wing",
    "floats on water": "anchor, beaver, duck, fishing pole, goose, leaf fluttering in wind, lotus, swan, wood, otter",
    "runs on rails": "bus, mountain cableway, aerial tramway, railway track, trolleybus, minibus",
    "is worn on the feet": "",
    "is worn on the head": (
        "diving mask, glasses, goggles, hair pick, lacrosse, martial arts uniform, sunglasses, woman's clothes, scarf"
    ),
    "makes music": "chains, flying disc, police car light",
    "is a ball": (
        "american football, badminton, bowling, boxing glove, cricket game, curling stone, field hockey, gear, "
        "goal net, ice hockey, lacrosse, ping pong, rugby football"
    ),
    "is a flower": "four leaf clover, herb, potted plant, seedling, shamrock, cactus, broccoli",
    "is a tree": "cactus, bouquet, broccoli, wood, house with garden",
}


def _names(text: str) -> frozenset[str]:
    return frozenset(name.strip() for name in text.split(",") if name.strip())


TRUE_OF: dict[str, frozenset[str]] = {phrase: _names(text) for phrase, text in FACTS.items()}
UNSURE_OF: dict[str, frozenset[str]] = {phrase: _names(text) for phrase, text in DOUBTFUL.items()}
