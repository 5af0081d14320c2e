"""The words that cells are made of."""

FIRST_NAMES = tuple(
    """Anna Ben Carla David Elena Felix Grace Henry Irene Jonas Karen Liam Maria Noah Olivia Peter Quinn Rosa Simon
    Tara Umar Vera Walter Xenia Yusuf Zoe Alice Bruno Chen Diego Emma Farid Greta Hugo Ines Jamal Kofi Lena Mateo
    Nadia Omar Priya Ravi Sofia Tomas José André Zoë""".split()
)

LAST_NAMES = tuple(
    """Adams Brown Clark Davis Evans Fischer Garcia Hughes Ivanov Jones Kim Lopez Meyer Novak Okafor Patel Rossi
    Smith Tanaka Weber Young Zhang Costa Dubois Eriksen Flores Grant Haddad Jansen Kumar Larsen Moreau Nguyen
    Olsen Peters Silva Taylor Vargas Wright O'Neil Müller Núñez Björk""".split()
)

CITIES = tuple(
    """Athens Berlin Cairo Dublin Lagos Lima London Madrid Milan Nairobi Oslo Paris Prague Quito Rome Seoul Sydney
    Tokyo Vienna Warsaw Zurich Boston Chicago Denver Houston Dallas Seattle Toronto Montreal Mumbai Delhi Jakarta
    Manila Hanoi Accra Tunis Porto Lyon Geneva Bergen Kraków Málaga Zürich""".split()
)

THINGS = tuple(
    """apple bread cable chair clock cloth coffee copper cotton desk drill engine fabric filter flour fork glass glove
    grain hammer handle honey jacket juice kettle knife ladder lamp leather lemon linen machine marble meter milk
    mirror motor needle orange oven paint panel paper pencil pepper phone pillow pipe plate plum pump radio rice
    rope rubber saddle salt sand screw sensor shelf shirt silver soap socket spoon steel stone stove sugar switch
    table tea tile tin tomato tool towel valve wagon watch water wax wheel wine wire wood wool yarn zinc café""".split()
)

QUALITIES = tuple(
    """black blue bright brown clean cold dark deep dry fine flat fresh green grey heavy hot large light long narrow
    new old pale plain quick red rough round short small smooth soft solid strong sweet thick thin warm wet white
    wide yellow""".split()
)

STATUSES = ("active", "closed", "done", "failed", "new", "no", "open", "paid", "pending", "ready", "sold", "yes")

UNITS = ("kg", "g", "km", "m", "cm", "h", "min", "pcs", "L", "kW")

MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")

HEADERS = {
    "name": ("Name", "Customer", "Author", "Contact", "Manager", "Player"),
    "city": ("City", "Place", "Origin", "Office", "Region"),
    "thing": ("Item", "Product", "Material", "Part", "Goods"),
    "note": ("Note", "Remark", "Details", "Comment", "Text"),
    "number": ("Count", "Total", "Units", "Stock", "Score", "Points"),
    "decimal": ("Rate", "Mean", "Ratio", "Length", "Weight", "Growth"),
    "price": ("Price", "Cost", "Fee", "Amount", "Salary"),
    "date": ("Date", "Start", "End", "Due", "Born", "Updated"),
    "status": ("Status", "State", "Phase", "Result"),
    "code": ("Code", "ID", "No.", "Ref", "Key"),
    "quantity": ("Size", "Load", "Time", "Volume", "Power"),
}

#: Pieces of invented words, so that copying, not knowing, is what the task asks for.
ONSETS = tuple("b br c ch d dr f fl g gr h j k kl l m n p pr qu r s sh st t tr v w z".split())
VOWELS = tuple("a e i o u ai ea io ou".split())
CODAS = ("", "", "", "l", "m", "n", "r", "s", "t", "x", "nd", "rk", "st")
