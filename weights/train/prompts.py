"""The grid of prompts behind the sampled half of the corpus: topics x forms x people, places and seasons.

A topic belongs to a domain, and the domain is the label that clusters of texts are checked against.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

SYSTEM = "You are a helpful assistant who writes in plain, clear English."

TOPICS = {
    "animals": """\
        how bees make honey; wild elephants; the habits of cats; training a young dog; whales in the
        ocean; migrating birds; wolves in the forest; how spiders spin webs; horses and their riders;
        penguins in the cold; the life of a frog; owls at night; caring for a pet rabbit; sharks;
        monkeys in the jungle; snakes and how they move; butterflies; foxes near towns; bats; ants and
        their colonies; dolphins; a lost kitten; an old sheepdog; animals in winter""",
    "astronomy": """\
        the planet Mars; the phases of the Moon; how stars are born; black holes; the rings of Saturn; a
        total eclipse of the Sun; comets and meteors; living on a space station; the first people on the
        Moon; telescopes; the Milky Way; the search for life on other planets; rockets; astronauts and
        their training; the northern lights; satellites around the Earth; the Sun; asteroids; the planet
        Jupiter; the age of the universe; constellations; a journey to a distant star; gravity in space;
        a new observatory""",
    "business": """\
        starting a small shop; a bakery that wants more customers; saving money; the stock market; a
        factory that is closing; prices and inflation; borrowing money from a bank; a job interview;
        paying taxes; selling things online; a new company; leading a team at work; trade between
        countries; advertising; asking for a raise; planning a budget; a rival business; working from
        home; unemployment; buying a first house; insurance; a market in a small town; customers who
        complain; the first day at a new job""",
    "computers": """\
        how the internet works; learning to write programs; computer viruses; robots that work in
        factories; artificial intelligence; choosing a good password; video games; the first computers;
        smartphones; storing photographs; a bug in a program; search engines; electronic mail; computer
        chips; computers in schools; keeping data private; a self-driving car; the keyboard and the
        mouse; social media; a broken laptop; encryption; a computer that plays chess; databases; video
        calls with the family""",
    "cooking": """\
        baking bread; vegetable soup; chocolate cake; fried rice; tomato sauce for pasta; roast chicken;
        apple pie; pancakes for breakfast; a fresh green salad; grilled fish; potato stew; lemon
        cookies; cheese omelettes; homemade pizza; spicy bean chili; beef and onions; a birthday cake;
        pickled cucumbers; rice pudding; making jam; mushroom risotto; lentil curry; barbecue in the
        garden; a family dinner""",
    "education": """\
        learning to read; a kind teacher; preparing for an examination; learning a foreign language; the
        first day of school; mathematics in daily life; a school library; homework; studying at a
        university; teaching small children; a school play; students who find lessons hard; writing a
        good essay; a class trip to a museum; learning from mistakes; school uniforms; a spelling
        contest; reading aloud; a science fair; evening classes for adults; friendship at school; how
        memory works; a new headmaster; taking good notes""",
    "family": """\
        growing old; a visit to grandmother; brothers and sisters; a wedding in the village; a new baby;
        moving to a new house; a family quarrel; bedtime stories; twins; celebrating a birthday; a lost
        letter; good neighbours; a father and his daughter; forgiving a friend; a family photograph;
        loneliness; a long marriage; adoption; a holiday with cousins; the kindness of strangers;
        keeping a promise; telling the truth; an old family secret; saying goodbye""",
    "gardening": """\
        growing tomatoes; planting trees; roses; a vegetable garden; a farm in spring; harvesting wheat;
        soil and compost; garden insects; apple orchards; watering plants in summer; a school garden;
        mushrooms in the woods; milk cows; keeping chickens; wild flowers; how seeds grow; potted plants
        indoors; weeds; sheep farming; a dry summer on the farm; a greenhouse; growing herbs; autumn
        leaves; tractors and ploughs""",
    "health": """\
        sleeping well; washing hands; a broken arm; the human heart; a visit to the dentist; eating
        healthy food; fever and colds; vaccines; exercise for older people; headaches; a busy hospital;
        how the lungs work; allergies; first aid; stress and worry; a doctor in a small village; teeth;
        the five senses; giving up smoking; drinking enough water; nurses; a new medicine; back pain;
        blood and how it flows""",
    "history": """\
        ancient Egypt and the pyramids; the Roman Empire; castles and knights; the invention of
        printing; the age of sailing ships; the French Revolution; the building of the railways; life in
        the Middle Ages; the Vikings; ancient Greece; the discovery of fire; kings and queens; the steam
        engine; the Silk Road; the plague; explorers in the Arctic; an old battle; the end of slavery;
        the Great Wall of China; life two hundred years ago; a forgotten city; the first farmers; the
        Renaissance; the telegraph""",
    "law": """\
        a trial by jury; a stolen painting; the rights of workers; voting in an election; a new mayor;
        writing a constitution; a lawyer and her client; the police and the public; a tax on sugar; a
        peace treaty; a bank robbery; prisons; a witness who changes her mind; freedom of speech; a town
        council meeting; traffic rules; a quarrel about land; the work of a judge; laws that protect
        children; a protest march; diplomats; a missing person; copyright; a contract between two
        friends""",
    "music": """\
        learning the piano; a symphony orchestra; folk songs; a street musician; the violin; singing in
        a choir; jazz; a music festival; drums and rhythm; a famous composer; opera; the guitar; a
        concert in the park; writing a song; dancing; music and memory; a painter at work; sculpture;
        the theatre; a film about the sea; photography; drawing portraits; a school band; a broken flute""",
    "science": """\
        how magnets work; electricity; the water cycle; atoms and molecules; light and colour; how
        plants make food; sound and hearing; heat and temperature; evolution; cells; acids and bases;
        the speed of light; energy from the Sun; friction; a laboratory experiment; the theory of
        gravity; fossils and dinosaurs; the metric system; genes and heredity; crystals; bacteria;
        probability; levers and pulleys; why ice floats""",
    "sports": """\
        a football match; learning to swim; a long-distance race; tennis; the Olympic Games; a
        basketball team; climbing a mountain; riding a bicycle; a chess tournament; sailing; a boxing
        champion; ice skating; the rules of baseball; training for a marathon; cricket; a losing team;
        skiing; gymnastics; fishing in a lake; a referee's decision; horse racing; rowing; playing fair;
        an injured player""",
    "travel": """\
        a train journey; a walk through Paris; crossing the desert; an island holiday; a night in an old
        inn; visiting Japan; getting lost in a city; packing a suitcase; a voyage by ship; camping in
        the woods; flying for the first time; a market in Morocco; a bridge over the river; airports; a
        journey by bus; a lighthouse on the coast; a museum in London; the mountains of Switzerland;
        hitchhiking; maps and compasses; a small hotel; learning local customs; a river cruise; the road
        home""",
    "weather": """\
        a thunderstorm; the four seasons; a great flood; snow in the city; hurricanes; climate change;
        fog on the river; an earthquake; volcanoes; wind and windmills; rainbows; a forest fire;
        drought; clouds and what they mean; tides and waves; glaciers; a hot day in July; weather
        forecasts; a frozen lake; mountains and valleys; rivers; coral reefs; saving the rainforest;
        recycling""",
}

FORMS = {
    "explanation": [
        "Explain {topic} in simple words.",
        "Write a short explanation about {topic} for {reader}.",
        "What should {reader} know about {topic}?",
        "Tell me about {topic}.",
    ],
    "news": [
        "Write a short news report about {topic} in {place}.",
        "Write a newspaper article about {topic}, written in {season}.",
        "Write a news story about {topic}. Quote {name}, who lives in {place}.",
    ],
    "story": [
        "Write a short story about {name} and {topic}.",
        "Tell a story about {topic} set in {place}.",
        "Write a story that takes place in {season} about {topic}, with a happy ending.",
        "Write a story for children about {topic}. The hero is called {name}.",
    ],
    "answers": [
        "Ask three questions about {topic} and answer each of them.",
        "Answer in two or three sentences: what is interesting about {topic}?",
        "Why do people care about {topic}? Answer in one short paragraph.",
        "{name} asks: what can you tell me about {topic}? Give a short answer.",
    ],
    "letter": [
        "Write a letter from {name} to {other} about {topic}.",
        "Write a short, friendly letter to {other} about {topic}. Sign it {name}.",
    ],
    "dialogue": [
        "Write a conversation between {name} and {other} about {topic}.",
        "{name} and {other} talk about {topic} in {place}. Write what they say.",
    ],
    "summary": [
        "Summarize a book about {topic} in one paragraph.",
        "Write a summary of a talk about {topic} given by {name}.",
    ],
    "diary": [
        "Write a diary entry by {name} about {topic}.",
        "Write what {name} remembers about {topic} in {season}.",
    ],
    "advice": [
        "Give {name} some friendly advice about {topic}.",
        "What mistakes do people make with {topic}?",
    ],
    "speech": [
        "Write a short speech about {topic} for {reader}.",
        "Write the speech that {name} gave about {topic} in {place}.",
    ],
    "description": [
        "Describe {topic} in {place} in {season}.",
        "Describe {topic} in a few vivid paragraphs.",
    ],
    "steps": [
        "Explain step by step how someone could learn about {topic}.",
        "Write simple instructions to do with {topic}.",
    ],
    "opinion": [
        "Write a short opinion piece about {topic}.",
        "Give one argument for and one argument against {topic}.",
    ],
    "history": ["Write a short history of {topic}.", "How has {topic} changed over the years?"],
    "fable": [
        "Write a fable about {topic} that ends with a moral.",
        "Write a folk tale from {place} about {topic}.",
    ],
    "recipe": [
        "Write a recipe for {topic}.",
        "{name} wants to cook. Write a simple recipe: {topic}.",
        "Describe how to prepare {topic} for {reader}.",
    ],
}

NAMES = """\
    Anna Ben Clara David Elena Felix Grace Henry Iris Jack Kate Leo Maria Noah Olivia Peter Rosa Sam
    Tara Victor Wendy Yusuf Zoe Amir Lucy Martin Nadia Oscar Priya Thomas""".split()
OTHERS = """\
    her brother;his sister;an old friend;a neighbour;the teacher;a cousin;the mayor;grandfather;a
    doctor;a shopkeeper;an uncle; a new friend;the editor;a farmer;a young student"""
PLACES = """\
    a small village;a big city;a town by the sea;the mountains;London;a quiet valley;India;New York;a
    harbour town;Canada; an old castle;Africa;a busy market;Italy;the countryside;Australia"""
SEASONS = """\
    spring;summer;autumn;winter;the rainy season;the month of May;December;a cold year"""
READERS = """\
    children;a beginner;students;a curious friend;older people;a class of ten-year-olds;busy
    parents;someone who has never heard of it"""


def _split(text: str) -> list[str]:
    return [" ".join(part.split()) for part in text.split(";")]


@dataclass(frozen=True)
class Prompt:
    domain: str
    topic: str
    form: str
    prompt: str


def draw(n: int, seed: int) -> list[Prompt]:
    """Draw n prompts: every (topic, form) once before any comes again, each time with other words."""
    rng = np.random.default_rng(seed)
    cells = [
        (domain, topic, form)
        for domain, topics in TOPICS.items()
        for topic in _split(topics)
        for form in FORMS
        if (form == "recipe") <= (domain == "cooking")
    ]
    fillings = {
        "name": NAMES,
        "other": _split(OTHERS),
        "place": _split(PLACES),
        "season": _split(SEASONS),
        "reader": _split(READERS),
    }
    prompts: list[Prompt] = []
    while len(prompts) < n:
        for i in rng.permutation(len(cells)):
            domain, topic, form = cells[i]
            template = FORMS[form][rng.integers(len(FORMS[form]))]
            filling = {key: values[rng.integers(len(values))] for key, values in fillings.items()}
            prompts.append(Prompt(domain, topic, form, template.format(topic=topic, **filling)))
    return prompts[:n]
