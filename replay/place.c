/* place.c - where in the program it does not pay to let ops wait.
 *
 * Each place has an account of what was lost there, which gains pay off but never overdraw: what went well long ago
 * does not excuse what goes wrong now. So a place that is right more often than not stays at nothing, and only losing places
 * take room in the table.
 */
#include "replay/place.h"

#define PLACES 4096 /* power of two */
#define PLACES_LOG2 12
#define LOSING 24.0f    /* op times lost before a verdict */
#define SECOND_LOOK 512 /* times that nothing began at a losing place until it is tried again: programs change */
#define PROBATION 20.0f /* what it is taken to have lost then: a few more losses renew the verdict */
#define WAIT_COST 0.5f  /* looking up, closing and opening pages for an op that waits in vain */

static struct place {
	uint32_t tag;
	uint32_t refused;
	float lost; /* 0: the slot is free */
} places[PLACES];

static uint64_t recent; /* the last ops: each is shifted on by the next ones and falls out at the top */

static struct place *slot_of(uint64_t key)
{
	return &places[key >> (64 - PLACES_LOG2)];
}

/* Of other bits than the slot, and of those that more than the last ops decide. */
static uint32_t tag_of(uint64_t key)
{
	return (uint32_t)(key >> 20);
}

uint64_t place_enter(uint32_t op, int64_t numel)
{
	/* Each op's part is twenty bits wide, where the next op's overlaps it: five ops count. */
	uint64_t part = ((uint64_t)op * 0x9E3779B97F4A7C15ull ^ (uint64_t)numel * 0xD6E8FEB86659FD93ull) >> 44;

	recent = (recent << 13) ^ part;
	return recent * 0x9E3779B97F4A7C15ull;
}

bool place_is_losing(uint64_t key)
{
	struct place *place = slot_of(key);

	if (place->tag != tag_of(key) || place->lost < LOSING)
		return false;
	if (++place->refused < SECOND_LOOK)
		return true;
	place->refused = 0;
	place->lost = PROBATION;
	return false;
}

void place_note(uint64_t key, double saved, uint32_t in_vain)
{
	struct place *place = slot_of(key);
	float loss = (float)in_vain * WAIT_COST - (float)saved;

	if (place->tag != tag_of(key)) {
		if (loss <= 0)
			return;
		/* Two places for one slot: the one that loses more gets it in the end. */
		place->lost -= loss;
		if (place->lost > 0)
			return;
		*place = (struct place){.tag = tag_of(key)};
	}
	place->lost = place->lost + loss > 0 ? place->lost + loss : 0;
}
