package snapshot

import (
	"maps"
	"os/user"
	"strconv"
	"sync"
)

// nameCache finds the names of users and groups, each once.
type nameCache struct {
	mu            sync.Mutex
	users, groups map[uint32]string
}

func (c *nameCache) user(id uint32) string {
	return c.lookUp(&c.users, id, func(text string) (string, error) {
		found, err := user.LookupId(text)
		if err != nil {
			return "", err
		}
		return found.Username, nil
	})
}

func (c *nameCache) group(id uint32) string {
	return c.lookUp(&c.groups, id, func(text string) (string, error) {
		found, err := user.LookupGroupId(text)
		if err != nil {
			return "", err
		}
		return found.Name, nil
	})
}

func (c *nameCache) lookUp(known *map[uint32]string, id uint32, find func(string) (string, error)) string {
	c.mu.Lock()
	defer c.mu.Unlock()
	if name, ok := (*known)[id]; ok {
		return name
	}
	name, err := find(strconv.FormatUint(uint64(id), 10))
	if err != nil {
		name = "" // a number without a name is common
	}
	if *known == nil {
		*known = map[uint32]string{}
	}
	(*known)[id] = name
	return name
}

// all are copies of the names that were asked for.
func (c *nameCache) all() (users, groups map[uint32]string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	users, groups = map[uint32]string{}, map[uint32]string{}
	maps.Copy(users, c.users)
	maps.Copy(groups, c.groups)
	return users, groups
}
