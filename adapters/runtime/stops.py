class StopFinder:
    def __init__(self, stops, decode):
        self.s, self.d, self.t = stops, decode, []

    def feed(self, ids):
        self.t += ids
        text = self.d(self.t)
        return any(s in text for s in self.s)
