echo built > /usr/built; touch /tmp/t
